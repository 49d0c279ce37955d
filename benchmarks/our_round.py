"""A round of P-GRAFT by `pgraft_fast.finetune`, as benchmarks time it."""

from collections.abc import Callable

import torch
from torch import Tensor

from pgraft_fast.finetune import FinetuneSettings, Learner, Ledger, collect, train
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.tasks import Task
from pgraft_fast_benchmarks.harness import Row
from pgraft_fast_benchmarks.timing import percentile

PARTS = ("sample", "score", "accept", "train")


class OurRound:
    """The second round, in which the tuned model samples above the cut.

    learner: default all weights of a copy. seconds: of each run, by part.
    """

    def __init__(
        self, task: Task, config: FinetuneSettings, device: torch.device, mode: str, reward: Callable[..., object],
        learner: Learner | None = None,
    ) -> None:  # fmt: skip
        self._task, self._settings, self._device, self._reward = task, config, device, reward
        self._execution = Execution(mode, device)
        self._learner = Learner(task.model, config.train) if learner is None else learner
        self._learner.run = self._execution.of(self._learner.run, trained=True)  # type: ignore[arg-type]
        self.seconds: list[dict[str, float]] = []

    def run(self) -> Tensor:
        """Rewards (groups, candidates)."""
        task, ledger, run, cut = self._task, Ledger(), self._execution, self._settings.cut
        candidates = collect(
            run.of(task.model), task.schedule, self._reward, task.prompts, self._settings, shape=task.shape,
            parameterization=task.parameterization, round_=1, cuts=(cut,), tuned=run.of(self._learner.ema),
            ledger=ledger, device=self._device, graphs=run.graphs,
        )  # fmt: skip
        kept = candidates.kept(cut, "state")
        with torch.enable_grad():
            train(
                self._learner, kept, task.schedule, parameterization=task.parameterization, seed=1, ledger=ledger,
                graphs=run.training_graphs,
            )  # fmt: skip
        self.seconds.append({part: ledger.seconds[part] for part in PARTS})
        return candidates.rewards


def parts_of(seconds: list[dict[str, float]]) -> Row:
    """Medians in milliseconds."""
    return {f"{part}_ms": round(1e3 * percentile([by_part[part] for by_part in seconds], 0.5), 3) for part in PARTS}
