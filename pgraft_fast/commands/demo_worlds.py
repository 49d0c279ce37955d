"""The demos by name, and of tasks other than the digits what is tuned towards what, and at which size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pgraft_fast.commands.demo import DemoSettings, run_demo
from pgraft_fast.finetune import SampleSettings, SelectSettings, TrainSettings
from pgraft_fast.runs.terminal import Terminal

LAYOUTS = DemoSettings(
    task=(("name", "layouts"), ("variant", "flow")),
    title="page layouts",
    cuts=(0.0, 0.125, 0.25),
    copies_cuts=(0.0, 0.125, 0.25),
    reward="tidy",
    sample=SampleSettings(prompts=128, candidates=16, steps=25, solver="ddpm"),
    # A sixth of the base's samples.
    select=SelectSettings(rule="binary", threshold=-0.8),
    train=TrainSettings(
        objective="contrast", strength=3.0, low_noise=3.0, steps=120, batch_size=64, learning_rate=1e-4, ema=0.98
    ),
    samples=512,
    reference_samples=1024,
)

MOLECULES = DemoSettings(
    task=(("name", "molecules"),),
    title="small molecules",
    # Two and four of the 40 steps.
    cuts=(0.0, 0.05, 0.1),
    copies_cuts=(0.05,),
    graft_strength=1.0,
    reward="stable",
    sample=SampleSettings(prompts=128, candidates=8, steps=40, solver="ddpm"),
    select=SelectSettings(rule="binary", threshold=0.5),
    # What is stable is decided in the last eighth of the steps.
    train=TrainSettings(
        objective="contrast", strength=10.0, low_noise=6.0, steps=100, batch_size=48, learning_rate=2e-4, ema=0.97
    ),
    samples=160,
    reference_samples=256,
)


# By the name that `pgraft-fast demo` takes.
WORLDS = {
    "layouts": LAYOUTS,
    "molecules": MOLECULES,
}


def run_world(what: str, out: Path | None, seeds: int | None, terminal: Terminal) -> dict[str, Any]:
    """Run the demo of "digits", of text to image ("shapes"), or of one of `WORLDS`. Returns the JSON's content.

    out: runs/demo or runs/demo-<what> where it is None. seeds: three, of shapes one.
    """
    folder = out or Path("runs/demo" if what == "digits" else f"runs/demo-{what}")
    if what != "shapes":
        return run_demo(replace(WORLDS.get(what, DemoSettings()), seeds=seeds or 3), folder, terminal)
    from pgraft_fast.commands.comparison import ComparisonSettings
    from pgraft_fast.commands.demo_shapes import run_shapes_demo

    return run_shapes_demo(ComparisonSettings(seeds=tuple(range(seeds or 1))), folder, terminal)
