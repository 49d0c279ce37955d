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


class Steep(nn.Module):
    """v = -slope tanh(x): y - h slope tanh(y) has several solutions or an expanding iteration where h slope > 1."""

    def __init__(self, slope):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x, t):
        return -self.slope * torch.tanh(x)
