"""Networks that are trained within a test."""

import torch
from torch import nn


class Mlp(nn.Module):
    """On 4 elements and a time, always with the same first weights."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 4))

    def forward(self, x, t):
        return self.layers(torch.cat((x, t[:, None]), dim=1))
