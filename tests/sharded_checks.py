"""What two ranks with shares of a network find beside one rank with all of it. See `rank_checks`."""

import copy
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from sharded_nets import BOUNDS, SETTINGS, blocks, gradients_off, loss_of, off, pair, train, train_both
from sharded_pipelines import learn
from sharded_runs import failed_reward, runs
from torch import nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError, RankError
from pgraft_fast.finetune import Learner
from pgraft_fast.finetune.checkpoint import Checkpoint, load_newest, save_checkpoint
from pgraft_fast.ranks.holding import holding_full
from pgraft_fast.ranks.parts import part_of, whole_of
from pgraft_fast.ranks.sharded import is_sharded, shard, skeleton
from pgraft_fast.ranks.turns import Turns
from pgraft_fast.sampling import rollout


def full(mesh, ranks):
    """All weights; the activations of the two ranks are recomputed."""
    rank = ranks.rank
    one, two = pair(mesh, recompute=True)
    found = {**gradients_off(one, two, rank), **train_both(one, two, rank, 3)}
    whole = two.gathered()
    found["state"] = off(whole, one.tensors()) if rank == 0 else 0.0
    with torch.no_grad():
        x, t = torch.linspace(-1, 1, 24).view(3, 8), torch.tensor([0.9, 0.5, 0.1])
        for name in ("ema", "frozen"):
            found[name] = float((getattr(one, name)(x, t) - getattr(two, name)(x, t)).abs().max())
    return {
        "off": found, "written by": bool(whole), "captured": two.can_be_captured,
        "sharded": [is_sharded(part) for part in (two.model, two.ema, two.frozen)],
    }  # fmt: skip


def samples(mesh, ranks):
    """Trajectories above the cut from the averaged weights, below it from the reference; again after more training."""
    rank = ranks.rank
    one, two = pair(mesh)
    found = {}
    for turn in range(2):
        train_both(one, two, rank, 2, 2 * turn)
        drawn = [
            rollout(
                learner.frozen, Schedule.linear_flow(), shape=(8,), sample_ids=ids, steps=5, solver="ddpm",
                parameterization="v", tuned=learner.ema, cut=0.4, batch_size=2,
            ).final
            for learner, ids in ((one, torch.arange(8)), (two, torch.arange(4) + 4 * rank))
        ]  # fmt: skip
        found[f"after {2 * turn + 2} steps"] = float((drawn[0][4 * rank :][:4] - drawn[1]).abs().max())
    return {"off": found}


def checkpoints(mesh, ranks):
    """Written by rank 0 of two and read by one, and the other way round; both go on as the one that wrote."""
    rank = ranks.rank
    one, two = pair(mesh)
    train_both(one, two, rank, 2)
    read_one, read_two = pair(mesh)
    of_one = {}
    whole = two.gathered()
    if rank == 0:
        with tempfile.TemporaryDirectory() as name:
            for kind, tensors in (("one", one.tensors()), ("two", whole)):
                save_checkpoint(Path(name) / kind, Checkpoint(1, {}, tensors))
            of_one = load_newest(Path(name) / "one", print).tensors
            read_one.load(load_newest(Path(name) / "two", print).tensors, 2)
    read_two.load(of_one, 2)
    lent = {group: {key: v.detach().clone() for key, v in named.items()} for group, named in two.tensors().items()}
    for learner, own in ((one, None), (read_one, None), (read_two, rank)):
        if rank == 0 or own is not None:
            train(learner, own, 2, 2)
    found, after = {}, read_two.gathered()
    if rank == 0:
        found = {"one": off(read_one.tensors(), one.tensors()), "two": off(after, one.tensors())}
    # Lent for a trial, and given back.
    train(two, rank, 1, 5)
    two.load(lent, 2)
    given_back = two.gathered()
    return {
        "off": {**found, "given back": off(given_back, whole)},
        "moved": off(of_one, one.tensors()) if rank == 0 else None,
        "share": sum(part_of(value).numel() for value in lent["model"].values())
        / sum(weight.numel() for weight in one.model.parameters()),
        "steps": read_two.steps_done,
    }  # fmt: skip


def round_starts(mesh, ranks):
    """Averaged weights kept for the contrast objective, twice."""
    rank = ranks.rank
    one, two = pair(mesh)
    x, t = torch.linspace(-1, 1, 24).view(3, 8), torch.tensor([0.9, 0.5, 0.1])
    found, moved = {}, []
    for turn in range(2):
        train_both(one, two, rank, 1, turn)
        one.freeze()
        two.freeze()
        train_both(one, two, rank, 1, turn + 2)
        with torch.no_grad():
            found[str(turn)] = float((one.frozen(x, t) - two.frozen(x, t)).abs().max())
            moved.append(float((two.ema(x, t) - two.frozen(x, t)).abs().max()))
    return {"off": found, "moved": moved}


def halves(mesh, ranks):
    """16-bit weights with norms in 32 bits: how far weights are from those of 32-bit training; a loss that overflows on
    one rank alone.
    """
    rank = ranks.rank
    found = {}
    for dtype in (torch.bfloat16, torch.float16):
        net = blocks(dtype, torch.float32)
        one, two = pair(mesh, net)
        exact = Learner(copy.deepcopy(net).float(), SETTINGS)
        train_both(one, two, rank, 2)
        train(exact, None, 2)
        whole = two.gathered()
        called = []
        block = two.model.blocks[0]
        hook = block.wide.register_forward_hook(lambda part, *_: called.append(part.weight.dtype))  # noqa: B023
        with torch.no_grad():
            two.model(torch.zeros(1, 8), torch.ones(1))
        hook.remove()
        two_reference = two.frozen
        two.freeze()
        with torch.no_grad():
            x, t = torch.linspace(-1, 1, 16).view(2, 8), torch.tensor([0.9, 0.2])
            assert torch.allclose(two_reference(x, t), net(x, t), atol=1e-2)
            same = torch.equal(two.frozen(x, t), two.ema(x, t)) and two.frozen.blocks[0].wide.weight.dtype is dtype
        found[str(dtype)] = {
            "called in its own": called[0] is dtype,
            "kept in float32": block.wide.weight.dtype is torch.float32,
            "norms whole": type(block.norm.weight) is nn.Parameter,
            "start of a round in its own": same,
        }
        if rank == 0:
            of_one, of_exact = one.weights()["model"], exact.weights()["model"]
            found[str(dtype)] |= {
                "dtypes": all(value.dtype is of_one[key].dtype for key, value in whole["model"].items()),
                "off": [_distance(values, of_exact) for values in (whole["model"], of_one)],
            }
    scales = []
    for factor in (1e30 if rank == 1 else 1.0, 1.0):
        two.begin()
        two.backward(loss_of(two, *BOUNDS[rank]) * factor)
        done, _ = two.step()
        scales.append([done, two.overflows, two._scaler.get_scale()])
    return {**found, "overflow": scales}


def _distance(values, others):
    return sum(float((value.detach() - others[key].detach()).square().sum()) for key, value in values.items()) ** 0.5


def turns(mesh, ranks):
    """Five calls of one rank, two of another; other networks at other times; and none at all."""
    rank = ranks.rank
    nets = [shard(blocks(count=count).requires_grad_(False), mesh) for count in (2, 3)]
    plain = [blocks(count=count) for count in (2, 3)]
    x, t = torch.linspace(-1, 1, 16).view(2, 8), torch.tensor([0.9, 0.2])
    made = Turns(seconds=30)
    for net in nets:
        made.add(net, lambda net=net: net(x[:1], t[:1]))
    found = {"blank": [], "off": 0.0}
    plans = ([[0, 0, 1, 1, 1], [1, 0]], [[], [0, 1, 0]], [[1], [1]], [[], []])
    for plan in plans:
        before = made.blank
        with torch.no_grad(), made.open():
            for number in plan[rank]:
                far = (nets[number](x * rank, t) - plain[number](x * rank, t)).abs().max()
                found["off"] = max(found["off"], float(far))
        found["blank"].append(made.blank - before)
    # One that fails; later all is as before.
    try:
        with torch.no_grad(), made.open():
            nets[0](x, t)
            if rank == 1:
                raise ZeroDivisionError
            nets[0](x, t)
    except (ZeroDivisionError, RankError) as error:
        found["failed"] = f"{type(error).__name__} {error}".strip()
    with torch.no_grad(), made.open():
        found["after"] = float((nets[0](x, t) - plain[0](x, t)).abs().max())
    made.close()
    with torch.no_grad():
        found["closed"] = float((nets[1](x, t) - plain[1](x, t)).abs().max())
    return found


def failed_calls(mesh, ranks):
    """A call that raises within, on all ranks, leaves nothing that the next one stumbles over."""
    net, plain = shard(blocks(), mesh), blocks()
    x, t = torch.linspace(-1, 1, 16).view(2, 8), torch.tensor([0.9, 0.2])
    messages = []
    hook = net.blocks[4].register_forward_pre_hook(lambda *_: 1 / 0)
    for wrong in (x[:, :5], x):
        try:
            net(wrong, t)
        except (RuntimeError, ZeroDivisionError) as error:
            messages.append(type(error).__name__)
    hook.remove()
    net(x, t).square().sum().backward()
    plain(x, t).square().sum().backward()
    far = [
        float(((_summed(mine.grad) if mine.ndim == 0 else whole_of(mine.grad)) - 2 * own.grad).abs().max())
        for mine, own in zip(net.parameters(), plain.parameters(), strict=True)
    ]
    refused = []
    integers = nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.int8), False)])
    for wrong in (partial(skeleton, net), partial(shard, integers, mesh)):
        try:
            wrong()
        except InputError as error:
            refused.append(str(error))
    return {"messages": messages, "gradient": max(far), "refused": refused}


def _summed(gradient):
    dist.all_reduce(gradient)
    return gradient


def _nbytes(tensors):
    """Of the memory behind them, each once."""
    storages = {}
    for tensor in tensors:
        storage = part_of(tensor).untyped_storage()
        storages[storage.data_ptr() or id(storage)] = storage.nbytes()
    return sum(storages.values())


def _held(learner, base):
    """By what is allocated, after an optimiser step and another backward pass."""
    masters, averages = learner._masters, learner._averages
    learner.begin()
    learner.backward(loss_of(learner, 0, 2))
    learner._masters.take_gradients()
    trained = [weight for weight in learner.model.parameters() if weight.requires_grad]
    moments = [state[name] for state in learner.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    weights = _nbytes(trained)
    return {
        "base": _nbytes(base), "weights": weights, "masters": _nbytes([*masters.written(), *trained]) - weights,
        "gradients": _nbytes([weight.grad for weight in masters.by_name.values()]), "moments": _nbytes(moments),
        "averages": _nbytes([*averages.written(), *learner.ema.parameters()]),
    }  # fmt: skip


def holdings(mesh, ranks):
    """[told, allocated] of each part, on one rank and on two."""
    nets = {"float32": blocks(), "bfloat16": blocks(torch.bfloat16), "mixed": blocks(torch.bfloat16, torch.float32)}
    found = {}
    for name, net in nets.items():
        for learner, size in zip(pair(mesh, net), (1, 2), strict=True):
            learner.update(loss_of(learner, 0, 2))
            told = holding_full(net, size, sharded=size == 2)
            held = _held(learner, learner.frozen.parameters())
            found[f"{name} on {size}"] = {part: [getattr(told, part), count] for part, count in held.items()}
    found["share"] = holding_full(net, 2, sharded=True).kept / holding_full(net).kept
    return found


CHECKS = {
    "full": full,
    "samples": samples,
    "checkpoints": checkpoints,
    "round starts": round_starts,
    "halves": halves,
    "turns": turns,
    "failed calls": failed_calls,
    "holdings": holdings,
    "runs": runs,
    "flux": partial(learn, name="flux", lora=False),
    "flux lora": partial(learn, name="flux", lora=True, recompute=True),
    # Nothing follows: the lifeline ends ranks that have heard of a failure.
    "failed reward": failed_reward,
}
