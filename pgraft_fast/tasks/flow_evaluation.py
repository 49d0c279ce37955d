"""A base flow and its correctors measured on the same noise: distances against the FLOPs of an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.diagnostics import count_flops, frechet_distance, nearest_distances, sliced_wasserstein
from pgraft_fast.diffusion import normal
from pgraft_fast.inverse_noise import NoiseCorrector, generate
from pgraft_fast.tasks.flow import FlowTask

_REFERENCE, _FLOOR, _NOISE = 101, 102, 103
_NEAREST = 1000


@dataclass(frozen=True)
class FlowEvaluation:
    """rows: of the base at several numbers of steps and of every corrector, see `evaluate_flow`. floor: the distances
    of two draws of the data. shown: samples at the same noise by name.
    """

    rows: list[dict[str, Any]]
    floor: dict[str, float]
    shown: dict[str, Tensor]


def evaluate_flow(
    task: FlowTask,
    base: nn.Module,
    correctors: Mapping[str, NoiseCorrector],
    *,
    samples: int,
    base_steps: Sequence[int],
    splits: Sequence[tuple[int, int]],
    solver: str = "euler",
    seed: int = 0,
    shown: int = 64,
    batch_size: int = 1000,
) -> FlowEvaluation:
    """splits: (steps of the base, steps of the corrector). An affine corrector is measured once for each base.

    Rows: name, base_steps, corrector_steps, flops_per_image (counted), fd (in the task's features), swd (sliced
    Wasserstein distance of the states), nearest (median distance to the nearest training sample, nan without data).
    """
    index = torch.arange(samples)
    noise = normal(seed + _NOISE, index, 0, task.shape)
    reference = task.draw(index, seed + _REFERENCE)
    target = task.features_of(reference)
    other = task.draw(index, seed + _FLOOR)
    floor = {
        "fd": frechet_distance(task.features_of(other), target),
        "swd": sliced_wasserstein(other.flatten(1), reference.flatten(1)),
        "nearest": _nearest(task, other),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    pictures: dict[str, Tensor] = {}

    def measure(name: str, steps: int, corrector: NoiseCorrector | None) -> None:
        def draw(z: Tensor) -> Tensor:
            start = z if corrector is None else corrector(z)
            return generate(base, start, steps, solver=solver, batch_size=batch_size)

        drawn = draw(noise)
        own = 0 if corrector is None else corrector.steps
        label = f"{name} {steps}" if corrector is None else f"{name} {steps} + {own}"
        pictures[label] = drawn[:shown]
        rows.append(
            {
                "name": name, "base_steps": steps, "corrector_steps": own,
                "flops_per_image": count_flops(lambda: draw(noise[:1])),
                "fd": frechet_distance(task.features_of(drawn), target),
                "swd": sliced_wasserstein(drawn.flatten(1), reference.flatten(1)),
                "nearest": _nearest(task, drawn),
            }
        )  # fmt: skip

    for steps in base_steps:
        measure("base", steps, None)
    for name, corrector in correctors.items():
        done = set()
        for steps, own in splits:
            if corrector.kind == "affine":
                own = 1  # noqa: PLW2901
            if (steps, own) in done or corrector.base_steps not in (None, steps):
                continue
            done.add((steps, own))
            measure(name, steps, _with_steps(corrector, own))
    return FlowEvaluation(rows, floor, pictures)


def _with_steps(corrector: NoiseCorrector, steps: int) -> NoiseCorrector:
    return NoiseCorrector(
        corrector.kind, corrector.shape, corrector.network, corrector.config, steps=steps,
        base_steps=corrector.base_steps, told=corrector.told,
    )  # fmt: skip


def _nearest(task: FlowTask, x: Tensor) -> float:
    if task.data is None:
        return float("nan")
    return float(nearest_distances(x[:_NEAREST], task.data).median())
