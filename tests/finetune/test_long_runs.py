"""Thousands of rounds: what a round takes and what the process holds stay the same; a reward that fails loses none."""

import math
import random
import time
from pathlib import Path

import pytest
import torch
from small_nets import Mlp

from pgraft_fast.diffusion import Schedule
from pgraft_fast.finetune import FinetuneSettings, SampleSettings, SelectSettings, Trainer, TrainSettings
from pgraft_fast.rewards import PolicedReward, Policy

# Resident bytes may grow by this share after the first of them.
GROWTH, SETTLED = 0.05, 500
FAILING = 0.05


def trainer(run, rounds, reward, candidates=2, **callbacks):
    settings = FinetuneSettings(
        sample=SampleSettings(prompts=1, candidates=candidates, steps=2), select=SelectSettings(k=1),
        train=TrainSettings(steps=1, batch_size=1, learning_rate=1e-3, cut=0.4, rounds=rounds),
    )  # fmt: skip
    return Trainer(
        Mlp(), Schedule.linear_flow(), reward, settings, shape=(4,), parameterization="velocity", run=run,
        **{"log": lambda text: None, **callbacks},
    )  # fmt: skip


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def plain(x):
    return x.sum(1)


def test_a_round_writes_no_more_than_the_one_before(tmp_path):
    """But for its own line in the history."""
    sizes = []

    def on_round(number, entry):
        folder = tmp_path / f"run/checkpoints/round-{number:06d}"
        sizes.append({path.name: path.stat().st_size for path in folder.iterdir()})
        assert len((folder / "history.jsonl").read_bytes().splitlines()) == number

    trainer(tmp_path / "run", 40, plain, on_round=on_round).run_rounds()
    for name in sizes[0]:
        grown = sizes[-1][name] - sizes[0][name]
        assert grown < 39 * 400 if name == "history.jsonl" else abs(grown) < 40, name


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says what a process holds now")
def test_ten_thousand_rounds(tmp_path):
    rounds, held = 10_000, {}

    def on_round(number, entry):
        if number % SETTLED == 0:
            held[number] = resident_bytes()

    run = trainer(tmp_path / "run", rounds, plain, on_round=on_round)
    run.run_rounds()
    print(f"MB: { ({number: round(size / 1e6, 1) for number, size in held.items()}) }")
    assert max(held.values()) <= (1.0 + GROWTH) * held[SETTLED]
    assert run.ledger.seconds["lost"] == 0.0
    resumed = trainer(tmp_path / "run", rounds, plain)
    assert resumed.rounds_done == rounds and list(resumed.history) == list(run.history)


class Failing:
    """A reward that fails in a share of its calls, in one of the ways in which rewards do."""

    name = "failing"

    def __init__(self, seed):
        self._draw, self.calls, self.failures = random.Random(seed), 0, 0

    def __call__(self, x):
        self.calls += 1
        values = plain(x)
        if self._draw.random() >= FAILING:
            return values
        self.failures += 1
        match self._draw.choice(("raise", "none", "nan", "infinite", "short", "text", "hang")):
            case "raise":
                raise ConnectionError("the server\nis gone \x1b[31m")
            case "none":
                return None
            case "nan":
                return torch.where(torch.arange(len(x)) == 0, math.nan, values)
            case "infinite":
                return values / 0.0
            case "short":
                return values[1:]
            case "hang":
                if self._draw.random() < 0.05:
                    time.sleep(1.5 * TIME_OUT)
        return ["good"] * len(x)


TIME_OUT = 0.4
POLICIES = {
    # Six tries: of 24,000 batches one in 2,500 runs would lose one.
    "retry": Policy("retry", retries=5, timeout_seconds=TIME_OUT),
    "drop": Policy("drop", timeout_seconds=TIME_OUT, max_dropped_share=0.5),
}


def failing_run(folder, policy, rounds, legs):
    """The run stops and goes on a few times. Returns how many calls failed of how many."""
    calls = failures = 0
    for leg in range(1, legs + 1):
        lines = []
        failing = Failing(leg)
        with PolicedReward(failing, POLICIES[policy], batch_size=4, log=lines.append) as reward:
            run = trainer(folder / "run", rounds * leg // legs, reward, candidates=16)
            run.run_rounds()
            run.ledger.close(finished=True)
        calls, failures = calls + failing.calls, failures + failing.failures
        assert all(line.isprintable() for line in lines)
    assert run.rounds_done == rounds and run.ledger.seconds["lost"] == 0.0
    assert all(math.isfinite(entry[key]) for entry in run.history for key in ("reward", "reward_accepted", "loss"))
    assert all(entry["accepted"] == 1 and entry["steps"] == 1 for entry in run.history)
    if policy == "retry":
        # Nothing of a failure is left.
        straight = trainer(folder / "straight", rounds, plain, candidates=16)
        straight.run_rounds()
        rewards = [[entry["reward"] for entry in each.history] for each in (run, straight)]
        assert rewards[0] == rewards[1]
    print(f"{policy}: {failures} of {calls} calls failed")
    return calls, failures


@pytest.mark.parametrize("policy", POLICIES)
def test_some_failures(tmp_path, policy):
    calls, failures = failing_run(tmp_path, policy, rounds=30, legs=2)
    assert calls >= 4 * 30 and failures > 0


@pytest.mark.faults
@pytest.mark.parametrize("policy", POLICIES)
def test_ten_minutes_of_failures(tmp_path, policy):
    """So many rounds of both policies, and of the run without failures, take about ten minutes on one core."""
    rounds = 6_000
    calls, failures = failing_run(tmp_path, policy, rounds, legs=4)
    assert calls >= 4 * rounds and failures > 0.8 * FAILING * calls
