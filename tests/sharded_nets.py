"""A small network of blocks, and the same training of a learner on one rank and of one among ranks."""

import copy
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from pgraft_fast.diffusion import NoiseKey, Schedule, Stream
from pgraft_fast.finetune import Learner, TrainSettings, pgraft_loss
from pgraft_fast.finetune.gradients import even_gradient
from pgraft_fast.finetune.sharded import ShardedLearner
from pgraft_fast.ranks.parts import as_part, whole_of

SETTINGS = TrainSettings(learning_rate=1e-2, weight_decay=0.1, ema=0.5)
ROWS = 5
# Of each of two ranks.
BOUNDS = [(0, 3), (3, ROWS)]


class Block(nn.Module):
    """With a table of one row, a single number, and a weight whose rows two ranks do not share evenly."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 3 * width + 1), nn.Linear(3 * width + 1, width)
        self.table = nn.Parameter(torch.linspace(-0.5, 0.5, 2 * width).view(1, 2, width))
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x, time):
        scale, shift = (self.table + time[:, None, None]).unbind(1)
        kind = self.wide.weight.dtype
        h = self.wide((self.norm(x.to(self.norm.weight.dtype)).to(kind)) * scale + shift)
        return x + self.gain * self.narrow(torch.tanh(h))


class Blocks(nn.Module):
    """model(x, t): x (B, 8)."""

    def __init__(self, width=8, blocks=9):
        super().__init__()
        self.into, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.recompute = False

    def forward(self, x, t):
        kind = self.into.weight.dtype
        h, time = self.into(x.to(kind)), t.to(kind)
        for block in self.blocks:
            if self.recompute:
                h = torch.utils.checkpoint.checkpoint(block, h, time, use_reentrant=False)
            else:
                h = block(h, time)
        return self.out(h).to(x.dtype)


def blocks(dtype=torch.float32, norms=None, count=9):
    """norms: dtype of the norms."""
    torch.manual_seed(0)
    net = Blocks(blocks=count).to(dtype)
    for block in net.blocks:
        block.norm.to(norms or dtype)
    return net


def pair(mesh, net=None, recompute=False):
    """(the learner on one rank, the one among ranks) of the same network. recompute: activations, among ranks."""
    net = blocks() if net is None else net
    other = copy.deepcopy(net)
    other.recompute = recompute
    return Learner(copy.deepcopy(net), SETTINGS), ShardedLearner(other, SETTINGS, mesh)


def loss_of(learner, low, high, step=0, shape=(8,), condition=None, schedule=None, parameterization="v", rows=ROWS):
    """The share of these rows in the loss of all."""
    generator = torch.Generator().manual_seed(step)
    x, t = torch.randn(rows, *shape, generator=generator), torch.linspace(0.95, 0.4, rows)
    device = next(iter(learner._masters.by_name.values())).device
    x, t = x.to(device), t.to(device)
    row = slice(low, high)
    key = torch.arange(rows, device=device)[row]
    loss = pgraft_loss(
        learner.run, schedule or Schedule.linear_flow(), x[row], t_cut=0.3, parameterization=parameterization, t=t[row],
        condition=None if condition is None else condition[row],
        noise=NoiseKey(step, key, torch.zeros_like(key), Stream.TRAIN_NOISE),
    )  # fmt: skip
    return loss * ((high - low) / rows)


def gradients_off(one, two, rank, **problem):
    """The largest difference of all gradients, and of the losses."""
    losses = []
    for learner, own in ((one, None), (two, rank)):
        losses.append(_gradient(learner, own, **problem))
        learner._masters.take_gradients()
    worst = 0.0
    for name, weight in two._masters.weights.items():
        whole = whole_of(as_part(two._masters.by_name[name].grad, weight))
        worst = max(worst, float((whole - one._masters.by_name[name].grad).abs().max()))
    return {"gradient": worst, "loss": abs(summed(losses[1]) - losses[0])}


def _gradient(learner, rank, **problem):
    """Of a batch, two rows at once where that may be; its loss, or this rank's part of it."""
    bounds, rows = [(0, ROWS)] if rank is None else BOUNDS, min(2, learner.most_rows())
    return float(even_gradient(learner, partial(loss_of, learner, **problem), bounds, rank or 0, rows))


def train(learner, rank, count, start=0, **problem):
    """Steps of a learner, two rows at once. rank: None for one that has all rows. (losses, norms of gradients)"""
    losses, norms = [], []
    for step in range(start, start + count):
        losses.append(_gradient(learner, rank, step=step, **problem))
        done, norm = learner.step()
        assert done
        norms.append(float(norm))
    return losses, norms


def train_both(one, two, rank, count, start=0, **problem):
    """The largest differences of losses and of norms."""
    losses, norms = train(one, None, count, start, **problem)
    other_losses, other_norms = train(two, rank, count, start, **problem)
    return {
        "losses": max(abs(a - b) for a, b in zip(losses, summed(other_losses), strict=True)),
        "norms": max(abs(a - b) for a, b in zip(norms, other_norms, strict=True)),
    }


def summed(value):
    """Over the ranks."""
    total = torch.tensor(value)
    dist.all_reduce(total)
    return total.tolist()


def off(groups, others):
    """The largest difference of tensors in groups, of the same names, dtypes and shapes."""
    assert groups.keys() == others.keys()
    worst = 0.0
    for group, tensors in groups.items():
        assert tensors.keys() == others[group].keys()
        for name, value in tensors.items():
            other = others[group][name]
            assert (value.shape, value.dtype) == (other.shape, other.dtype), name
            far = (value.detach().cpu().double() - other.detach().cpu().double()).abs()
            worst = max([worst, *far.flatten().tolist()])
    return worst
