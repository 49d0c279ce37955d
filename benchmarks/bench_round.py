"""A whole round of P-GRAFT, sample, score, accept, train, against the same written plainly, training on all, and DDPO.

The configuration is pinned: groups of 16, the best 2 kept, cut 0.25, 25 steps, ten passes over the kept rows. DDPO's
round draws as many samples and learns once from all of their steps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pgraft_fast.finetune import (
    FinetuneSettings,
    Learner,
    Ledger,
    SampleSettings,
    SelectSettings,
    TrainSettings,
    pgraft_loss,
)
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.methods import Ddpo
from pgraft_fast.finetune.work import Work
from pgraft_fast.sampling import rollout
from pgraft_fast.sampling.timing import timed
from pgraft_fast.tasks import Task
from pgraft_fast.tasks.digits import DigitsSettings, digits_task
from pgraft_fast_benchmarks import round_goals, round_gpu
from pgraft_fast_benchmarks.harness import Case, Each, Provider, Settings, run_cases
from pgraft_fast_benchmarks.our_round import PARTS, OurRound, parts_of
from pgraft_fast_benchmarks.plain_round import Law, PlainRound, cosine_v, linear_flow
from pgraft_fast_benchmarks.providers import missing

GOALS = round_goals.GOALS
SHOWN = ("plain", "plain compile", "all rows", "ddpo", "ours compile", "ours graph")
DETAILS = {
    "samples_per_hour": "samples/h", "sample_ms": "sample ms", "score_ms": "score", "accept_ms": "accept",
    "train_ms": "train",
}  # fmt: skip
DETAILS_NOTE = "samples/h: candidates drawn, scored and learned from in an hour of the device."

_CANDIDATES, _KEPT, _STEPS, _CUT, _PASSES, _BATCH = 16, 2, 25, 0.25, 10, 64
_REWARD = "symmetry"
# A policy needs densities.
_STOCHASTIC = {"euler": "euler_sde"}
Variant = Literal["vp", "flow"]
_LAWS: dict[Variant, tuple[Callable[[], Law], Literal["ddpm", "euler"]]] = {
    "vp": (cosine_v, "ddpm"),
    "flow": (linear_flow, "euler"),
}


def cases(settings: Settings) -> Iterator[Case]:
    """Every shipped model; on a GPU one of real size."""
    prompts, steps = settings.by_size((100, _STEPS), (100, _STEPS), (4, 8))
    for variant in _LAWS:
        yield Case(
            "round", f"digits {variant}", (prompts, _CANDIDATES, 1, 8, 8), "float32", None,
            partial(_providers, variant, prompts, steps), columns={"batch": prompts * _CANDIDATES, "steps": steps},
            budget=settings.by_size(15.0, 5.0, 0.0), least=settings.by_size(5, 2, 2),
        )  # fmt: skip
    if settings.device.type == "cuda":
        yield from round_gpu.cases(settings)


def run(settings: Settings, each: Each) -> dict[str, Any]:
    """Measure all. each: told the label and the rows of a case when it is done."""
    return run_cases(cases(settings), settings, each)


class DdpoRound:
    """A round of DDPO on the same model, reward and number of samples."""

    def __init__(self, task: Task, config: FinetuneSettings, device: torch.device) -> None:
        execution, learner = Execution("eager", device), Learner(task.model, config.train)
        learner.sampled = execution.of(learner.model)
        sample = config.sample
        sample = sample.model_copy(update={"solver": _STOCHASTIC.get(sample.solver, sample.solver)})
        self._work = Work(
            model=task.model, schedule=task.schedule, reward=task.reward(_REWARD), prompts=task.prompts,
            settings=config.model_copy(update={"method": "ddpo", "sample": sample}), shape=task.shape,
            parameterization=task.parameterization, learner=learner, execution=execution, ledger=Ledger(),
            sampling=BatchSize(sample.batch_size), training=BatchSize(sample.batch_size), device=device,
            log=lambda line: None,
        )  # fmt: skip
        self._method = Ddpo(self._work)
        self.seconds: list[dict[str, float]] = []

    def run(self) -> Tensor:
        """Rewards (groups, candidates)."""
        ledger = self._work.ledger
        before = dict(ledger.seconds)
        with torch.enable_grad():
            done = self._method.round(1, _nothing, _nothing, lambda: False)
        self.seconds.append({part: ledger.seconds[part] - before[part] for part in PARTS})
        return done.rewards


def _nothing() -> None:
    """No check."""


class _Plain(PlainRound):
    def run(self) -> tuple[Tensor, float]:
        with torch.enable_grad():
            return super().run()


def _providers(variant: Variant, prompts: int, steps: int, settings: Settings) -> Sequence[Provider]:
    task = _on(settings.device, digits_task(DigitsSettings(variant=variant)))
    config = settings_of(variant, prompts, steps, one_batch=settings.device.type == "cuda")
    names = ("plain", *([] if settings.short else ["plain compile"]), "all rows")
    try:
        plain = {
            name: _plain(
                task, config, variant, settings.device, compiled="compile" in name, all_rows=name == "all rows"
            )
            for name in names
        }
        absent: list[Provider] = []
    except ImportError as error:
        plain, absent = {}, [missing(name, error) for name in names]
    modes = ["eager", *([] if settings.short else ["compile"]), *(["graph"] if settings.device.type == "cuda" else [])]
    ours = {
        "ours" if mode == "eager" else f"ours {mode}": OurRound(
            task, config, settings.device, mode, task.reward(_REWARD)
        )
        for mode in modes
    }
    rewards: dict[str, Tensor] = {}
    policy = {"ddpo": DdpoRound(task, config, settings.device)}

    def gate(name: str) -> str | None:
        if name in policy:
            rewards[name] = policy[name].run()
            return _same_law(rewards[name], rewards["ours"])
        rewards[name] = plain[name].run()[0] if name in plain else ours[name].run()
        wrong = _same_law(rewards[name], rewards["ours"])
        return wrong if wrong or not plain else _same_work(task, plain["plain"], variant, settings.device)

    def provider(name: str) -> Provider:
        round_: Any = ours.get(name) or policy.get(name) or plain[name]
        return Provider(
            name, partial(timed, round_.run, settings.device), partial(gate, name), optional="compile" in name,
            backend=settings.backend if name in ours or name in policy else None, own_clock=True,
            columns=lambda: parts_of(round_.seconds),
            per_hour={"samples_per_hour": prompts * _CANDIDATES},
        )  # fmt: skip

    return [*(provider(name) for name in (*ours, *plain, *policy)), *absent]


def settings_of(variant: Variant, prompts: int, steps: int = _STEPS, one_batch: bool = False) -> FinetuneSettings:
    """Of the pinned configuration, with so many groups. one_batch: all are drawn at once, as `memory = "auto"` does."""
    kept = prompts * _KEPT
    sample = SampleSettings(prompts=prompts, candidates=_CANDIDATES, steps=steps, solver=_LAWS[variant][1])
    if one_batch:
        sample = sample.model_copy(update={"batch_size": prompts * _CANDIDATES})
    return FinetuneSettings(
        seed=3,
        sample=sample,
        select=SelectSettings(k=_KEPT),
        train=TrainSettings(
            cut=_CUT, steps=max(1, round(_PASSES * kept / _BATCH)), batch_size=_BATCH, learning_rate=1e-4, ema=0.98
        ),
    )


def _plain(
    task: Task, config: FinetuneSettings, variant: Variant, device: torch.device, *, compiled: bool, all_rows: bool
) -> PlainRound:
    assert task.prompts.condition is not None
    chosen = task.prompts.of_round(config.seed, 1, config.sample.prompts).to(device)
    return _Plain(
        task.model, _LAWS[variant][0](), task.reward(_REWARD), task.prompts.condition[chosen], task.shape, _CANDIDATES,
        _KEPT, config.sample.steps, _CUT, _PASSES, config.sample.batch_size, _BATCH, config.train.learning_rate,
        config.train.clip, config.train.ema, all_rows=all_rows, compiled=compiled,
    )  # fmt: skip


def _on(device: torch.device, task: Task) -> Task:
    if device.type == "cpu":
        return task
    condition = task.prompts.condition
    moved = replace(task.prompts, condition=None if condition is None else condition.to(device))
    return replace(task, model=task.model.to(device), prompts=moved)


def _same_law(theirs: Tensor, ours: Tensor) -> str | None:
    """Whether two sets of rewards have the same mean, within five standard errors."""
    error = (theirs.var() / theirs.numel() + ours.var() / ours.numel()).sqrt()
    off = float((theirs.mean() - ours.mean()).abs() / error)
    return None if off <= 5.0 else f"the mean reward is {off:.1f} standard errors off"


def _same_work(task: Task, plain: PlainRound, variant: str, device: torch.device) -> str | None:
    """The same loss on the same noisy states, and with a deterministic solver the same samples from the same noise."""
    generator = torch.Generator().manual_seed(7)
    x, noise = (torch.randn(32, *task.shape, generator=generator).to(device) for _ in range(2))
    labels, start = plain.labels[:1].expand(32), plain.t_cut()
    t = torch.linspace(start + 0.01, 1.0, 32, device=device)
    with torch.no_grad():
        expected = plain.losses(x, labels, t, noise, start)
        mine = pgraft_loss(
            plain._tuned, task.schedule, x, t_cut=start, parameterization=task.parameterization, condition=labels,
            t=t.double(), noise=noise, reduction="none",
        )  # fmt: skip
    if not torch.allclose(mine, expected, rtol=1e-3, atol=1e-4):
        return f"the losses differ by {float((mine - expected).abs().max()):.1e}"
    return None if variant == "vp" else _same_samples(task, plain, device)


def _same_samples(task: Task, plain: PlainRound, device: torch.device) -> str | None:
    """Samples and states at the cut of the deterministic solver, from the same noise."""
    count = len(plain.labels) * plain.candidates
    x = torch.randn(count, *task.shape, generator=torch.Generator().manual_seed(8)).to(device)
    final, kept = plain.sample(x)
    roll = rollout(
        task.model, task.schedule, shape=task.shape, steps=plain.steps, solver="euler", cuts=(_CUT,), tuned=plain.ema,
        cut=_CUT, parameterization=task.parameterization, x_start=x, start=1.0 - 1e-12, n=count, device=device,
        condition=plain.labels.repeat_interleave(plain.candidates),
    )  # fmt: skip
    off = max(float((final - roll.x_0).abs().max()), float((kept - roll.x_cut[_CUT]).abs().max()))
    return None if off <= 5e-3 else f"the samples differ by {off:.1e}"
