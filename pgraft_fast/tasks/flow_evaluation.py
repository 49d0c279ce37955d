"""A base flow and its correctors measured on the same noise: distances against the FLOPs of an image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.diagnostics import Slices, count_flops, frechet_distance, nearest_distances
from pgraft_fast.diffusion import normal
from pgraft_fast.inverse_noise import NoiseCorrector, generate
from pgraft_fast.ranks.ranks import ALONE, Ranks
from pgraft_fast.tasks.flow import FlowTask

_REFERENCE, _FLOOR, _NOISE = 101, 102, 103
_NEAREST = 1000


@dataclass(frozen=True)
class FlowEvaluation:
    """rows: of the base at several numbers of steps and of every corrector, see `evaluate_flow`. floor: the distances
    of two draws of the data. shown: samples at the same noise by `label` of their row, and "data".
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
    shown: int = 100,
    batch_size: int = 1000,
    check: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> FlowEvaluation:
    """splits: (steps of the base, steps of the corrector). An affine corrector is measured once for each base.

    Rows: name, base_steps, corrector_steps, flops_per_image (counted), fd (in the task's features), swd (sliced
    Wasserstein distance of the states), nearest (median distance to the nearest training sample, nan without data).
    No more than a batch of samples is kept. check(): between batches, may raise. ranks: among which samples are dealt.
    """
    device = next(base.parameters()).device
    measure = _Measure(task, samples, batch_size, shown, device, check, ranks)
    reference = measure(lambda index: task.draw(index, seed + _REFERENCE))
    floor = measure.against(reference, measure(lambda index: task.draw(index, seed + _FLOOR)))
    rows: list[dict[str, Any]] = []
    pictures: dict[str, Tensor] = {"data": reference.first}

    def add(name: str, steps: int, corrector: NoiseCorrector | None) -> None:
        def draw(z: Tensor) -> Tensor:
            start = z if corrector is None else corrector(z)
            return generate(base, start, steps, solver=solver, batch_size=batch_size)

        def numbered(index: Tensor) -> Tensor:
            return draw(normal(seed + _NOISE, index.to(device), 0, task.shape))

        drawn = measure(numbered)
        own = 0 if corrector is None else corrector.steps
        row = {"name": name, "base_steps": steps, "corrector_steps": own}
        pictures[label(row)] = drawn.first
        flops = count_flops(lambda: numbered(torch.arange(1)))
        rows.append({**row, "flops_per_image": flops, **measure.against(reference, drawn)})

    for steps in base_steps:
        add("base", steps, None)
    for name, corrector in correctors.items():
        done = set()
        for steps, own in splits:
            taken = 1 if corrector.kind == "affine" else own
            if (steps, taken) in done or corrector.base_steps not in (None, steps):
                continue
            done.add((steps, taken))
            add(name, steps, _with_steps(corrector, taken))
    return FlowEvaluation(rows, floor, pictures)


def label(row: Mapping[str, Any]) -> str:
    """Of a row: its name and steps."""
    own = row["corrector_steps"]
    return f"{row['name']} {row['base_steps']}" + (f" + {own}" if own else "")


@dataclass(frozen=True)
class _Set:
    """What is kept of many samples."""

    features: Tensor
    slices: Tensor
    nearest: float
    first: Tensor


class _Measure:
    """Draws batch after batch and keeps what distances need."""

    def __init__(
        self, task: FlowTask, samples: int, batch_size: int, shown: int, device: torch.device,
        check: Callable[[], None], ranks: Ranks,
    ) -> None:  # fmt: skip
        self._task, self._samples, self._batch, self._shown = task, samples, batch_size, shown
        self._device, self._check, self._ranks = device, check, ranks
        self._slices = Slices(task.data_size)
        self._data = None if task.data is None else task.data.to(device)

    def __call__(self, draw: Callable[[Tensor], Tensor]) -> _Set:
        ranks, features, slices = self._ranks, [], []
        nearest, first = [torch.empty(0)], [torch.empty(0, *self._task.shape)]
        with ranks.together():
            begin, end = ranks.part(self._samples)
            for low in range(begin, end, self._batch):
                self._check()
                ranks.check()
                x = draw(torch.arange(low, min(low + self._batch, end))).to(self._device)
                features.append(self._task.features_of(x))
                slices.append(self._slices.of(x))
                if self._data is not None and low < _NEAREST:
                    nearest.append(nearest_distances(x[: _NEAREST - low], self._data).cpu())
                if low < self._shown:
                    first.append(x[: self._shown - low].cpu())
        distances = self._of_all(nearest, 0 if self._data is None else _NEAREST)
        median = float(distances.median()) if distances.numel() else float("nan")
        everything = self._of_all(features, self._samples), self._of_all(slices, self._samples)
        return _Set(*everything, median, self._of_all(first, self._shown))

    def _of_all(self, own: list[Tensor], most: int) -> Tensor:
        """The rows of all ranks, where those of the first `most` samples were kept."""
        counts = [max(0, min(high, most) - low) for low, high in self._ranks.bounds(self._samples)]
        return self._ranks.rows(torch.cat(own), counts)

    @staticmethod
    def against(reference: _Set, drawn: _Set) -> dict[str, float]:
        return {
            "fd": frechet_distance(drawn.features, reference.features),
            "swd": Slices.distance(drawn.slices, reference.slices),
            "nearest": drawn.nearest,
        }


def _with_steps(corrector: NoiseCorrector, steps: int) -> NoiseCorrector:
    return NoiseCorrector(
        corrector.kind, corrector.shape, corrector.network, corrector.config, steps=steps,
        base_steps=corrector.base_steps, summary=corrector.summary,
    )  # fmt: skip
