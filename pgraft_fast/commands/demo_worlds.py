"""The demos of tasks other than the digits: what is tuned towards what, and at which size."""

from pgraft_fast.commands.demo import DemoSettings
from pgraft_fast.finetune import SampleSettings, SelectSettings, TrainSettings

LAYOUTS = DemoSettings(
    task=(("name", "layouts"), ("variant", "flow")),
    title="page layouts",
    cuts=(0.0, 0.25, 0.5),
    reward="tidy",
    sample=SampleSettings(prompts=128, candidates=16, steps=25, solver="ddpm"),
    # A sixth of the base's samples.
    select=SelectSettings(rule="binary", threshold=-0.8),
    train=TrainSettings(steps=120, batch_size=64, learning_rate=5e-5, ema=0.98),
    samples=512,
    reference_samples=1024,
)

MOLECULES = DemoSettings(
    task=(("name", "molecules"),),
    title="small molecules",
    cuts=(0.0, 0.125, 0.25),
    reward="stable",
    sample=SampleSettings(prompts=64, candidates=8, steps=40, solver="ddpm"),
    select=SelectSettings(rule="binary", threshold=0.5),
    train=TrainSettings(objective="contrast", strength=4.0, steps=50, batch_size=64, learning_rate=1e-4, ema=0.97),
    samples=192,
    reference_samples=512,
)


# By the name that `pgraft-fast demo` takes.
WORLDS = {
    "layouts": LAYOUTS,
    "molecules": MOLECULES,
}
