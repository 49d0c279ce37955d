"""The digit classifier: reward (probability of a digit) and feature space of the metrics."""

import torch.nn.functional as F
from torch import Tensor, nn

from pgraft_fast.tasks.digits.data import N_CLASSES

N_FEATURES = 32


class DigitsClassifier(nn.Module):
    """logits = classifier(x), x: (B, 1, 8, 8) in [-1, 1] -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv_2 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv_3 = nn.Conv2d(32, 48, 3, padding=1)
        self.hidden = nn.Linear(48 * 4, N_FEATURES)
        self.head = nn.Linear(N_FEATURES, N_CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """(B, 32): the layer below the logits, before its non-linearity."""
        x = F.gelu(self.conv_1(x))
        x = F.max_pool2d(F.gelu(self.conv_2(x)), 2)
        x = F.max_pool2d(F.gelu(self.conv_3(x)), 2)
        return self.hidden(x.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.features(x)))
