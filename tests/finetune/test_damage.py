"""A run whose checkpoints are damaged or whose disk is full: it says so and goes on from what is whole, bit for bit."""

import random
import re
import shutil

import pytest
import torch
from disks import fill, small_disk
from small_nets import Mlp

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import StorageError
from pgraft_fast.finetune import FinetuneSettings, SampleSettings, SelectSettings, Trainer, TrainSettings

ROUNDS = 3
# About 20,000 weights, so that a save takes many blocks of a disk.
WIDTH = 2000


def trainer(run, log=lambda text: None, rounds=ROUNDS, reward=lambda x: x.sum(1)):
    settings = FinetuneSettings(
        sample=SampleSettings(prompts=1, candidates=4, steps=2), select=SelectSettings(k=2),
        train=TrainSettings(steps=2, batch_size=4, learning_rate=1e-2, cut=0.4, rounds=rounds),
    )  # fmt: skip
    return Trainer(
        Mlp(WIDTH), Schedule.linear_flow(), reward, settings, shape=(4,), parameterization="velocity", run=run, log=log
    )


def finished(run):
    """The run at its end, and the lines that it told."""
    lines = []
    resumed = trainer(run, lines.append)
    resumed.run_rounds()
    return resumed, lines


def weights(run):
    return [value for group in run._learner.tensors().values() for _, value in sorted(group.items())]


def same(a, b):
    rewards = [[entry["reward"] for entry in run.history] for run in (a, b)]
    return rewards[0] == rewards[1] and all(map(torch.equal, weights(a), weights(b)))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    run = trainer(tmp_path_factory.mktemp("straight") / "run")
    run.run_rounds()
    return run


def flip_or_cut(draw, path):
    data = bytearray(path.read_bytes())
    if draw.random() < 0.6:
        bit = draw.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
    else:
        # To nothing now and then.
        del data[draw.choice((0, draw.randrange(len(data)), len(data) - 1)) :]
    path.write_bytes(data)


def remove(draw, path):
    path.unlink()


def damaged_files(straight, folder, seeds, damage=flip_or_cut):
    """The newest checkpoint's files in turn, the manifest one of them. Each damage is found."""
    newest, before = (straight.run / "checkpoints" / f"round-{number:06d}" for number in (ROUNDS, ROUNDS - 1))
    names = sorted(path.name for path in newest.iterdir())
    assert {"manifest.json", "state.json", "history.jsonl", "model.safetensors", "optimizer.safetensors"} <= set(names)
    for seed in seeds:
        draw, run, lines = random.Random(seed), folder / str(seed), []
        shutil.copytree(straight.run, run)
        victim = run / "checkpoints" / newest.name / names[seed % len(names)]
        damage(draw, victim)
        resumed = trainer(run, lines.append)
        assert resumed.rounds_done == ROUNDS - 1, (seed, victim.name, lines)
        assert str(victim.parent) in lines[0] and lines[0].endswith("falling back to the checkpoint before"), seed
        assert lines[1:] == [f"{run} goes on after round {before.name[-1]}"]
        if seed % 25 == 0:
            resumed.run_rounds()
            assert same(resumed, straight)
        shutil.rmtree(run)


def test_missing_files(straight, tmp_path):
    damaged_files(straight, tmp_path, range(len(list((straight.run / "checkpoints/round-000003").iterdir()))), remove)


def test_some_damaged_files(straight, tmp_path):
    damaged_files(straight, tmp_path, range(48))


@pytest.mark.faults
def test_a_thousand_damaged_files(straight, tmp_path):
    damaged_files(straight, tmp_path, range(1000, 2000))


def full_disks(straight, tmp_path, shares):
    """The disk is full after a share of the bytes of the second round's save."""
    rounds, checkpoints = [], straight.run / "checkpoints"
    save = sum(path.stat().st_size for path in (checkpoints / "round-000002").iterdir())
    with small_disk(tmp_path / "disk", 4) as disk:
        left = 0

        def reward(x):
            rounds.append(1)
            if len(rounds) == 2:
                fill(disk, left)
            return x.sum(1)

        for number, share in enumerate(shares):
            rounds.clear()
            run, left = disk / f"run-{number}", int(share * save)
            stopped = trainer(run, reward=reward)
            with pytest.raises(StorageError) as caught:
                stopped.run_rounds()
            told = r"needs [\d.]+ MB, no space left \([\d.]+ MB free\); the state before is whole"
            assert re.fullmatch(
                f"{re.escape(str(run))}/(checkpoints/round-000002|ledger.jsonl): {told}", str(caught.value)
            )
            assert [path.name for path in (run / "checkpoints").iterdir()] == ["round-000001"]
            for path in (run / "checkpoints/round-000001").iterdir():
                if path.suffix == ".safetensors":
                    assert path.read_bytes() == first_of(straight, path.name)
            (disk / "filler").unlink()
            resumed, lines = finished(run)
            assert lines[0] == f"{run} goes on after round 1" and same(resumed, straight)
            shutil.rmtree(run)


def first_of(straight, name):
    """A file of the first round, which the run itself keeps no more."""
    folder = straight.run.parent / "first"
    if not folder.exists():
        trainer(folder, rounds=1).run_rounds()
    return (folder / "checkpoints/round-000001" / name).read_bytes()


def test_a_full_disk(straight, tmp_path):
    full_disks(straight, tmp_path, (0.0, 0.3, 0.6, 0.97))


@pytest.mark.faults
def test_fifty_full_disks(straight, tmp_path):
    full_disks(straight, tmp_path, (random.Random(number).random() for number in range(50)))
