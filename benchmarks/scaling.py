"""How the cost of a round grows with candidates, prompts, steps, cut, training, resolution and ranks, and how well the
cost model of `pgraft_fast.finetune.cost` tells it from a short probe: what `finetune --dry-run` promises.

The model is fitted to the probe alone, so every point here is one that it has not seen.
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import multiprocessing

from pgraft_fast.finetune import (
    FinetuneSettings,
    Learner,
    Ledger,
    SampleSettings,
    SelectSettings,
    TrainSettings,
    collect,
    train,
)
from pgraft_fast.finetune.cost import CostModel, Line, evaluations_of, probe
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.sampling.timing import timed
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.digits import DigitsSettings, digits_task
from pgraft_fast_benchmarks.environment import environment
from pgraft_fast_benchmarks.goal_kinds import Goal
from pgraft_fast_benchmarks.harness import Each, Row, Settings
from pgraft_fast_benchmarks.timing import percentile

GOALS: tuple[Goal, ...] = ()
SHOWN: tuple[str, ...] = ()
DETAILS: dict[str, str] = {}
DETAILS_NOTE = ""

# Of the measured seconds.
TOLERANCE = 0.15
_BASE = {"candidates": 16, "prompts": 20, "steps": 25, "cut": 0.25, "train_batch": 64}
_VALUES: dict[str, tuple[float, ...]] = {
    "candidates": (4, 8, 32), "prompts": (5, 10, 40), "steps": (10, 50), "cut": (0.0, 0.5, 0.75),
    "train_batch": (32, 96),
}  # fmt: skip
_SMALL_BASE = {"candidates": 4, "prompts": 4, "steps": 5, "cut": 0.25, "train_batch": 16}
_SMALL: dict[str, tuple[float, ...]] = {"candidates": (2,), "steps": (3,)}
_TRAIN_STEPS, _SIDES, _HELD_SIDES, _RANKS = 12, (8, 32), (16, 24), (1, 2)


def run(settings: Settings, each: Each) -> dict[str, Any]:
    """Measure all. each: told the dimension and its rows when it is done."""
    rows: list[Row] = []
    for name, dimension_rows in _dimensions(settings):
        each(name, dimension_rows)
        rows += dimension_rows
    of_run = {"backend": settings.backend or "by device", "size": settings.size}
    return {**environment(settings.device), **of_run, "rows": rows}


def _dimensions(settings: Settings) -> Iterator[tuple[str, list[Row]]]:
    task = digits_task(DigitsSettings())
    base = _SMALL_BASE if settings.small else _BASE
    cost = _probe(task, _config(base))
    for name, values in (_SMALL if settings.small else _VALUES).items():
        yield (
            name,
            [
                row
                for value in values
                for row in _point(name, value, partial(_round, task, _config({**base, name: value})), cost, settings)
            ],
        )
    if not settings.small:
        yield "resolution", _resolution(settings)
        yield "ranks", _ranks(settings)


def _config(at: dict[str, float]) -> FinetuneSettings:
    return FinetuneSettings(
        sample=SampleSettings(prompts=int(at["prompts"]), candidates=int(at["candidates"]), steps=int(at["steps"])),
        select=SelectSettings(k=2),
        train=TrainSettings(cut=at["cut"], steps=_TRAIN_STEPS, batch_size=int(at["train_batch"]), learning_rate=1e-4),
    )


def _probe(task: Task, config: FinetuneSettings) -> CostModel:
    return probe(
        task.model, task.schedule, task.reward("symmetry"), config, shape=task.shape,
        parameterization=task.parameterization, prompts=task.prompts,
    )  # fmt: skip


def _round(task: Task, config: FinetuneSettings) -> tuple[Callable[[], object], Callable[[CostModel], float]]:
    """What is timed, and what the model says of it."""
    run, learner = Execution("eager", torch.device("cpu")), Learner(task.model, config.train)
    learner.run = run.of(learner.model)

    def work() -> None:
        ledger = Ledger()
        candidates = collect(
            run.of(task.model), task.schedule, task.reward("symmetry"), task.prompts, config, shape=task.shape,
            parameterization=task.parameterization, cuts=(config.cut,), ledger=ledger,
        )  # fmt: skip
        kept = candidates.kept(config.cut, "state")
        train(learner, kept, task.schedule, parameterization=task.parameterization, seed=0, ledger=ledger)

    evaluations = evaluations_of(task.schedule, config, task.parameterization)
    return work, lambda cost: cost.round(config, evaluations).seconds


def _point(
    name: str, value: float, make: Callable[[], tuple[Callable[[], object], Callable[[CostModel], float]]],
    cost: CostModel, settings: Settings,
) -> list[Row]:  # fmt: skip
    work, predict = make()
    work()
    seconds = percentile([timed(work, settings.device) for _ in range(settings.by_size(5, 3, 1))], 0.5)
    return _rows(name, value, seconds, predict(cost))


def _rows(name: str, value: float, measured: float, predicted: float) -> list[Row]:
    """Red where the model is further off than it may be."""
    error = predicted / measured - 1.0
    both = {"op": name, "case": f"{value:g}", "value": value, "model_error": round(error, 4)}
    gate = "ok" if abs(error) <= TOLERANCE else "fail"
    return [
        {**both, "provider": "measured", "gate": "ok", "p50_ms": round(1e3 * measured, 4)},
        {**both, "provider": "model", "gate": gate, "p50_ms": round(1e3 * predicted, 4),
         **({} if gate == "ok" else {"note": f"{100 * error:+.0f} % of the measured time"})},
    ]  # fmt: skip


def _resolution(settings: Settings) -> list[Row]:
    """A convolutional UNet on pictures of several sides: a line in the number of pixels through the two outer ones."""
    try:
        import diffusers
    except ImportError:
        return []
    torch.manual_seed(0)
    kind: Any = diffusers.UNet2DModel
    net = kind(
        sample_size=32, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, add_attention=False,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip

    @torch.no_grad()
    def seconds(side: int) -> float:
        x, t = torch.randn(8, 3, side, side), torch.full((8,), 100)
        net(x, t)
        return percentile([timed(lambda: net(x, t), settings.device) for _ in range(settings.by_size(30, 15, 3))], 0.5)

    line = Line.fit((side * side, seconds(side)) for side in _SIDES)
    return [row for side in _HELD_SIDES for row in _rows("resolution", side, seconds(side), line(side * side))]


def _ranks(settings: Settings) -> list[Row]:
    """Prompts shared among processes of one thread each, which sample and score; the slowest one ends the round."""
    prompts, rows = 40, []
    cost, *_ = _in_processes(1, prompts, probing=True)
    for ranks in _RANKS:
        taken = percentile(
            [max(_in_processes(ranks, prompts // ranks, probing=False)) for _ in range(settings.by_size(3, 2, 1))], 0.5
        )
        samples = prompts // ranks * _BASE["candidates"]
        predicted = cost.sampling(samples, _BASE["steps"], 256) + cost.score(samples)
        rows += _rows("ranks", ranks, taken, predicted)
    return rows


def _in_processes(ranks: int, prompts: int, probing: bool) -> list[Any]:
    """Each rank's seconds, or with `probing` its cost model. A rank that fails ends all, and its error is raised."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(ranks), context.SimpleQueue()
    multiprocessing.spawn(_rank, (prompts, probing, barrier, queue), nprocs=ranks)
    return [queue.get() for _ in range(ranks)]


def _rank(_number: int, prompts: int, probing: bool, barrier: Any, queue: Any) -> None:
    torch.set_num_threads(1)
    task, config = digits_task(DigitsSettings()), _config({**_BASE, "prompts": prompts})
    if probing:
        queue.put(_probe(task, config))
        return
    run = Execution("eager", torch.device("cpu"))

    def work() -> None:
        collect(
            run.of(task.model), task.schedule, task.reward("symmetry"), task.prompts, config, shape=task.shape,
            parameterization=task.parameterization, cuts=(0.25,),
        )  # fmt: skip

    work()
    barrier.wait()
    began = time.perf_counter()
    work()
    queue.put(time.perf_counter() - began)


if __name__ == "__main__":
    from pgraft_fast_benchmarks.run import main

    sys.exit(main(["scaling", *sys.argv[1:]]))
