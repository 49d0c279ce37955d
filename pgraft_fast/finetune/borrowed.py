"""A learner lent for a trial."""

from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.learner import Learner
from pgraft_fast.finetune.settings import TrainSettings


class Borrowed:
    """A learner for a trial: with other settings, and all as it was once it is given back."""

    def __init__(self, learner: Learner, settings: TrainSettings, run: Execution) -> None:
        self.learner = learner
        self._before = learner.settings, learner.run, learner.frozen, learner.averaged, learner.steps_done
        self._tensors = {
            # Detached: what comes from a weight keeps the node that its gradients end in, on the stream of this moment,
            # and then no CUDA graph of a step can be captured on another.
            name: {key: value.detach().clone() for key, value in group.items()}
            for name, group in learner.tensors().items()
        }
        learner.settings = settings
        for name in ("run", "frozen", "averaged"):
            setattr(learner, name, run.of(getattr(learner, name), trained=True))

    def leave_start(self, factor: float) -> None:
        """Averaged weights are so many times as far from what they were when they were borrowed."""
        now, start = self.learner.tensors(), self._tensors["ema"]
        moved = {
            name: start[name] + factor * (value.detach() - start[name])
            for name, value in now["ema"].items()
            if value.is_floating_point()
        }
        self.learner.load({**now, "ema": {**now["ema"], **moved}}, self.learner.steps_done)

    def give_back(self) -> None:
        """Undo everything."""
        learner = self.learner
        learner.settings, learner.run, learner.frozen, learner.averaged, steps = self._before
        learner.load(self._tensors, steps)
