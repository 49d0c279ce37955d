"""Rewards: the protocol and its checks, rewards that need nothing but pixels, and what is done when a reward fails.

Rewards by a model are in `clip_score`, `aesthetic` and `vqa_score`; those that run elsewhere in `process` and `http`.
"""

from pgraft_fast.rewards.combined import WeightedSum
from pgraft_fast.rewards.image import stroke_mass, symmetry
from pgraft_fast.rewards.loading import load_reward
from pgraft_fast.rewards.policy import PolicedReward, Policy
from pgraft_fast.rewards.protocol import Reward, name_of, score, unasked

__all__ = [
    "PolicedReward",
    "Policy",
    "Reward",
    "WeightedSum",
    "load_reward",
    "name_of",
    "score",
    "stroke_mass",
    "symmetry",
    "unasked",
]
