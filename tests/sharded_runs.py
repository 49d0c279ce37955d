"""Trainers on two ranks that share a network, beside one rank with all of it. See `rank_checks`."""

import shutil
import tempfile
from functools import partial
from pathlib import Path

import torch
from sharded_nets import blocks, off

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import PgraftError, RewardError
from pgraft_fast.finetune import FinetuneSettings, Prompts, Trainer
from pgraft_fast.finetune.sharded import ShardedLearner
from pgraft_fast.ranks.ranks import ALONE
from pgraft_fast.ranks.turns import Turns

_RUN = FinetuneSettings(
    sample={"prompts": 3, "candidates": 4, "steps": 4, "batch_size": 4}, select={"k": 2},
    train={"rounds": 2, "steps": 4, "batch_size": 5, "micro_batch": 2, "learning_rate": 1e-2, "ema": 0.5},
)  # fmt: skip


def _near_one(x, prompts):
    return -(x - 1.0).square().mean(dim=1)


def _run(folder, mesh, ranks, rounds, reward=_near_one):
    """A trainer that has made so many rounds, by itself where mesh is None."""
    net, schedule = blocks(count=4), Schedule.linear_flow()
    settings = _RUN.model_copy(update={"train": _RUN.train.model_copy(update={"rounds": rounds})})
    learner = None
    if mesh is not None:
        learner = ShardedLearner(net, settings.train, mesh)
        x, t = torch.zeros(1, 8), torch.ones(1)
        ranks.turns = Turns(30)
        for called in (net, learner.ema):
            ranks.turns.add(called, partial(called, x, t))
    trainer = Trainer(
        net, schedule, reward, settings, shape=(8,), parameterization="v",
        prompts=Prompts(["a", "b", "c", "d"]), run=folder, learner=learner, log=lambda line: None,
        ranks=ALONE if mesh is None else ranks,
    )  # fmt: skip
    trainer.run_rounds()
    return trainer


def _result(folder, mesh, ranks, alone, rounds):
    """(whole state, history) on the first rank, of a run on it alone or on all; calls made for others."""
    if alone:
        with ranks.together():
            trainer = _run(folder, None, ranks, rounds) if ranks.first else None
        return trainer and (trainer._learner.tensors(), trainer.history), 0
    trainer = _run(folder, mesh, ranks, rounds)
    blank, ranks.turns = ranks.turns.blank, None
    return (trainer._learner.gathered(), trainer.history), blank


def runs(mesh, ranks):
    """Two rounds on one rank, and each on one rank and the other on two, which draw one group and two."""
    folder = Path(ranks.from_first(tempfile.mkdtemp))
    alone, _ = _result(folder / "one", mesh, ranks, True, 2)
    state, history = alone or ({}, [])
    found, blanks = {}, []
    for first_alone, then_alone in ((False, True), (True, False)):
        name = f"{first_alone} {then_alone}"
        _, blank = _result(folder / name, mesh, ranks, first_alone, 1)
        told, more = _result(folder / name, mesh, ranks, then_alone, 2)
        blanks.append(blank + more)
        if ranks.first:
            found[f"{name}: weights"] = off({"": told[0]["ema"]}, {"": state["ema"]})
            for key in ("reward", "loss"):
                pairs = zip(told[1], history, strict=True)
                found[f"{name}: {key}"] = max(abs(one[key] - other[key]) for one, other in pairs)
    shutil.rmtree(folder, ignore_errors=True)
    moved = off({"": dict(blocks(count=4).named_parameters())}, {"": dict(state["ema"])}) if ranks.first else None
    return {"off": found, "moved": moved, "blank": blanks}


def failed_reward(mesh, ranks):
    """On the rank that draws more, while the other one makes its calls with it."""

    def reward(x, prompts):
        if ranks.rank == 1:
            raise RewardError("no answer")
        return _near_one(x, prompts)

    with tempfile.TemporaryDirectory() as folder:
        try:
            _run(folder, mesh, ranks, 1, reward)
        except PgraftError as error:
            return {"told": f"{type(error).__name__} {error}"}
    return {"told": None}
