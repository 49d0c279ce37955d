"""What a task is: a model, its prompts, its rewards and its metrics under one name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from pgraft_fast.diagnostics import frechet_distance, mean_interval, precision_recall
from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Learner, Prompts, TrainSettings
from pgraft_fast.rewards import load_reward


@dataclass(frozen=True)
class Task:
    """Everything that a run needs to know of its subject.

    model(x, t[, condition]): the reference. rewards: by name; `file.py:function` works everywhere, which `own_reward`
    fits to samples of the task. features(samples, condition) -> (n, d): space of the distances. data: features of the
    data set (m, d), or None. pictures(samples, condition) -> (n, H, W) or (n, H, W, 3) uint8 for grids. condition: of
    the samples, as in the prompts, or None. identity: JSON that names this very model and data in a checkpoint.
    held_out: prompts to evaluate on, default the same; categories: of each of these, or empty. learner: what is trained
    of the model. sounds(samples): WAV files, of audio. measures(samples, condition): figures beside the reward, by the
    names that tables show; nan where there is none. measures_of_data(): the same of real samples. condition_of(texts):
    of any prompts, where more can be asked for than those listed; raises InputError.
    """

    name: str
    model: nn.Module
    schedule: Schedule
    parameterization: str
    shape: tuple[int, ...]
    prompts: Prompts
    rewards: Mapping[str, Callable[..., object]]
    features: Callable[[Tensor, Tensor | None], Tensor]
    data: Tensor | None
    pictures: Callable[[Tensor, Tensor | None], np.ndarray]
    identity: dict[str, object]
    held_out: Prompts | None = None
    categories: tuple[str, ...] = ()
    learner: Callable[[TrainSettings], Learner] | None = None
    sounds: Callable[[Tensor], list[bytes]] | None = None
    measures: Callable[[Tensor, Tensor | None], dict[str, float]] | None = None
    measures_of_data: Callable[[], dict[str, float]] | None = None
    condition_of: Callable[[Sequence[str]], Tensor] | None = None
    own_reward: Callable[[Callable[..., object]], Callable[..., object]] = lambda function: function

    @property
    def evaluation_prompts(self) -> Prompts:
        """The prompts of evaluations."""
        return self.prompts if self.held_out is None else self.held_out

    def reward(self, name: str) -> Callable[..., object]:
        """A reward of the task by name, or a user's own from file.py:function. Raises InputError, RewardError."""
        if ".py:" in name:
            return self.own_reward(load_reward(name))
        if name not in self.rewards:
            raise InputError(f"reward {name!r} is unknown; known: {', '.join(self.rewards)}, or file.py:function")
        return self.rewards[name]

    def quality_of(self, features: Tensor, rewards: Tensor, accepted: Tensor | None) -> dict[str, object]:
        """Reward with its 95 % interval; Frechet distances to the data and to the accepted law; precision and recall
        against the accepted law (against the data where there is none).

        features (n, d) of samples, their rewards (n,), accepted: features (m, d) of samples that the rule accepted.
        """
        reward = mean_interval(rewards)
        target = self.data if accepted is None else accepted
        enough = target is not None and min(target.shape[0], features.shape[0]) > 3
        precision, recall = precision_recall(features, target) if target is not None and enough else (None, None)
        return {
            "reward": reward.mean,
            "reward_ci": [reward.low, reward.high],
            "fd_accepted": None if accepted is None else frechet_distance(features, accepted),
            "fd_data": None if self.data is None or features.shape[0] < 2 else frechet_distance(features, self.data),
            "precision": precision,
            "recall": recall,
        }
