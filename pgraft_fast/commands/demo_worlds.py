"""The demos of tasks other than the digits: what is tuned towards what, and at which size."""

from pgraft_fast.commands.demo import DemoSettings
from pgraft_fast.finetune import SampleSettings, SelectSettings, TrainSettings

LAYOUTS = DemoSettings(
    task=(("name", "layouts"), ("variant", "vp")),
    title="page layouts",
    cuts=(0.0, 0.25, 0.5),
    reward="tidy",
    sample=SampleSettings(prompts=100, candidates=16, steps=25, solver="ddpm"),
    select=SelectSettings(rule="binary", threshold=-0.5),
    train=TrainSettings(steps=150, batch_size=64, learning_rate=1e-3, ema=0.98),
    samples=512,
    reference_samples=1600,
)

# Accepted is what is stable; that a rejected one has more stable atoms counts for it in training.
MOLECULES = DemoSettings(
    task=(("name", "molecules"),),
    title="small molecules",
    cuts=(0.0, 0.125, 0.25),
    reward="share_of_stable_atoms",
    sample=SampleSettings(prompts=96, candidates=8, steps=30, solver="ddpm"),
    select=SelectSettings(rule="binary", threshold=1.0),
    train=TrainSettings(
        objective="contrast", strength=2.0, advantage="reward", steps=60, batch_size=64, learning_rate=2e-4, ema=0.97
    ),
    samples=256,
    reference_samples=512,
)

# By the name that `pgraft-fast demo` takes.
WORLDS = {
    "layouts": LAYOUTS,
    "molecules": MOLECULES,
}
