"""What a round will take, before it is run: a cost model fitted to a short timed probe.

A network call of b samples, an optimiser step on b rows and the reward of b samples each take fixed + each b seconds; a
round is a sum of those. The seconds depend on neither prompts, candidates, steps nor cut but through these counts, so
two sizes of each are enough.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.learner import Learner
from pgraft_fast.finetune.prompts import Prompts
from pgraft_fast.finetune.settings import CALLS_OF_A_TRAINED_SAMPLE, FinetuneSettings
from pgraft_fast.finetune.trial import training_trial
from pgraft_fast.rewards import score
from pgraft_fast.sampling import calls_of, make_steps, model_evaluations, rollout
from pgraft_fast.sampling.timing import median_time

_PROBE_STEPS = 3


@dataclass(frozen=True)
class Line:
    """Seconds of a batch of b: fixed + each b."""

    fixed: float
    each: float

    def __call__(self, batch: int) -> float:
        return self.fixed + self.each * batch

    @classmethod
    def fit(cls, points: Iterable[tuple[int, float]]) -> "Line":
        """Least squares of relative errors, both terms at least 0. points: (batch, seconds), one or more."""
        pairs = [(float(batch), seconds) for batch, seconds in points]
        weight = [1.0 / seconds**2 for _, seconds in pairs]
        total, x, y = (
            sum(w * value for w, value in zip(weight, values, strict=True))
            for values in ([1.0] * len(pairs), [b for b, _ in pairs], [s for _, s in pairs])
        )
        xx = sum(w * b * b for w, (b, _) in zip(weight, pairs, strict=True))
        xy = sum(w * b * s for w, (b, s) in zip(weight, pairs, strict=True))
        determinant = total * xx - x * x
        if determinant <= 1e-12 * total * xx:
            return cls(0.0, xy / xx)
        fixed, each = (y * xx - x * xy) / determinant, (total * xy - x * y) / determinant
        if fixed < 0.0:
            return cls(0.0, xy / xx)
        return cls(fixed, each) if each >= 0.0 else cls(y / total, 0.0)


@dataclass(frozen=True)
class Estimate:
    """Seconds of a round by phase, and its network calls, a backward pass counted as two."""

    sample: float
    score: float
    train: float
    model_calls: int

    @property
    def seconds(self) -> float:
        """Of the whole round; choosing takes next to nothing, saving is not in it."""
        return self.sample + self.score + self.train


@dataclass(frozen=True)
class CostModel:
    """call: one network call without gradients, its solver step included, with guidance where the model has it. train:
    an optimiser step. score: a reward. calls_a_sample: see `sampling.calls_of`.
    """

    call: Line
    train: Line
    score: Line
    calls_a_sample: int = 1

    def sampling(self, samples: int, evaluations: int, batch_size: int) -> float:
        """Seconds for so many trajectories of `evaluations` network calls each."""
        whole, rest = divmod(samples, batch_size)
        return evaluations * (whole * self.call(batch_size) + (self.call(rest) if rest else 0.0))

    def round(self, settings: FinetuneSettings, evaluations: int) -> Estimate:
        """A round of these settings, `evaluations` network calls a trajectory."""
        sample = settings.sample
        samples = sample.prompts * sample.candidates
        return Estimate(
            sample=self.sampling(samples, evaluations, sample.batch_size),
            score=self.score(samples),
            train=self._training(settings),
            model_calls=settings.calls(evaluations, self.calls_a_sample),
        )

    def evaluation(self, settings: FinetuneSettings, samples: int, evaluations: int) -> float:
        """Seconds in which so many samples are drawn and scored."""
        return self.sampling(samples, evaluations, settings.sample.batch_size) + self.score(samples)

    def _training(self, settings: FinetuneSettings) -> float:
        training = settings.train
        if settings.method not in ("ddpo", "nft"):
            return training.steps_of(settings.most_kept()) * self.train(training.batch_size)
        # A row of DDPO with guidance is trained on both sides of it; one of NFT also asks frozen models.
        row = (
            self.calls_a_sample
            if settings.method == "ddpo"
            else settings.nft.calls_of_a_row / CALLS_OF_A_TRAINED_SAMPLE
        )
        return settings.policy_rows() * row * self.train(training.batch_size) / training.batch_size


def evaluations_of(schedule: Schedule, settings: FinetuneSettings, parameterization: str) -> int:
    """Network calls of a trajectory."""
    sample = settings.sample
    grid = schedule.grid(sample.steps, parameterization)
    return model_evaluations(make_steps(schedule, grid, sample.solver, parameterization, sample.eta))


def probe(
    model: nn.Module,
    schedule: Schedule,
    reward: Callable[..., object],
    settings: FinetuneSettings,
    *,
    shape: Sequence[int],
    parameterization: str,
    prompts: Prompts,
    sizes: tuple[int, ...] | None = None,
    train_sizes: tuple[int, ...] | None = None,
    learner: Learner | None = None,
) -> CostModel:
    """Time a few steps of each kind, each size three times, the median counts; a second or two for a small model.

    learner: what will be trained, which is left as it was; default all weights of a copy. sizes, train_sizes: batches
    to time; by default the settings' and a quarter of it.
    """
    run, device = Execution(settings.mode, next(model.parameters()).device), next(model.parameters()).device
    whole = min(settings.sample.batch_size, settings.sample.prompts * settings.sample.candidates)
    sizes = (whole, max(1, whole // 4)) if sizes is None else sizes
    rows = settings.train.batch_size
    train_sizes = (rows, max(1, rows // 4)) if train_sizes is None else train_sizes
    called, scored, trained = [], [], []
    x_0 = torch.empty(0)
    prompts.prepare(torch.arange(min(len(prompts.text), max(*sizes, *train_sizes))))
    for size in sizes:
        condition = None if prompts.condition is None else prompts.condition[torch.arange(size) % len(prompts.text)]

        def draw(size: int = size, condition: Tensor | None = condition) -> Tensor:
            return rollout(
                run.of(model), schedule, shape=shape, n=size, steps=_PROBE_STEPS, solver=settings.sample.solver,
                eta=settings.sample.eta, parameterization=parameterization, condition=condition, batch_size=size,
                device=device, graphs=run.graphs,
            ).final  # fmt: skip

        few = settings.model_copy(update={"sample": settings.sample.model_copy(update={"steps": _PROBE_STEPS})})
        seconds, x_0 = median_time(draw, device)
        called.append((size, seconds / evaluations_of(schedule, few, parameterization)))
        text = [prompts.text[place % len(prompts.text)] for place in range(size)]

        def judge(x: Tensor = x_0, text: list[str] = text) -> Tensor:
            return score(reward, x, text, torch.arange(len(text)), settings.sample.batch_size)

        seconds, _ = median_time(judge, device)
        scored.append((size, seconds))
    for size in train_sizes:
        with training_trial(
            model, schedule, settings.train, x_0, prompts, steps=_PROBE_STEPS, batch_size=size,
            parameterization=parameterization, run=run, learner=learner,
        ) as learn:  # fmt: skip
            seconds, _ = median_time(learn, device)
        trained.append((size, seconds / _PROBE_STEPS))
    return CostModel(Line.fit(called), Line.fit(trained), Line.fit(scored), calls_of(model))
