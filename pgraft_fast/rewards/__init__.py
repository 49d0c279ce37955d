"""Rewards: the protocol, its checks, and rewards that need nothing but pixels."""

from pgraft_fast.rewards.image import stroke_mass, symmetry
from pgraft_fast.rewards.loading import load_reward
from pgraft_fast.rewards.protocol import Reward, name_of, score

__all__ = ["Reward", "load_reward", "name_of", "score", "stroke_mass", "symmetry"]
