"""Scikit-learn's 1,797 scanned handwritten digits (8 x 8, 17 grey levels) with a fixed held-out split.

Source: UCI "Optical Recognition of Handwritten Digits"; the file ships inside scikit-learn.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pgraft_fast.extras import need

SHAPE = (1, 8, 8)
N_CLASSES = 10
HELD_OUT = 360
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """images: (n, 1, 8, 8) float32 in [-1, 1], -1 paper and 1 ink. labels: (n,) int64."""

    images: Tensor
    labels: Tensor


@lru_cache(maxsize=2)
def load_digits(split: str) -> Digits:
    """split: "train" (1,437) or "held_out" (360), stratified by label."""
    need("the digits", "sklearn")
    # Imported here: scikit-learn takes half a second to import.
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    images, labels = sklearn_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=HELD_OUT, random_state=_SPLIT_SEED, stratify=labels)
    index = {"train": 0, "held_out": 1}[split]
    pixels = torch.tensor(parts[index], dtype=torch.float32).view(-1, *SHAPE) / 8.0 - 1.0
    return Digits(pixels, torch.tensor(parts[2 + index], dtype=torch.int64))
