"""Scoring beside sampling: the same rewards, errors early, nothing waits for a reward that was given up."""

import threading
import time

import pytest
import torch

from pgraft_fast.errors import RewardError, StoppedError
from pgraft_fast.finetune.scoring import Scoring
from pgraft_fast.rewards.protocol import finished


def add_all(scoring, parts=5, rows=3):
    for part in range(parts):
        ids = torch.arange(part * rows, (part + 1) * rows)
        scoring.add(ids[:, None].double(), ["p"] * rows, ids)


@pytest.mark.parametrize("beside", [False, True])
def test_rewards_come_in_order(beside):
    with Scoring(lambda x: x[:, 0] * 2.0, 2, lambda: None, beside) as scoring:
        add_all(scoring)
        assert scoring.rewards().tolist() == [2.0 * n for n in range(15)]


def test_it_runs_beside():
    first = threading.Event()

    def reward(x):
        assert first.wait(10)
        return x[:, 0]

    with Scoring(reward, 8, lambda: None, True) as scoring:
        add_all(scoring, 2)
        first.set()
        assert scoring.rewards().numel() == 6


@pytest.mark.parametrize("beside", [False, True])
def test_errors_and_missing_rewards(beside):
    def broken(x):
        raise ValueError("no")

    with pytest.raises(RewardError, match="broken"), Scoring(broken, 8, lambda: None, beside) as scoring:
        add_all(scoring, 1)
        for _ in range(200):
            time.sleep(0.01)
            scoring.raise_early()
        scoring.rewards()
    # One of 15 is more than 5 %: the share counts over all batches, not in each.
    with (
        pytest.raises(RewardError, match="1 of 15 samples"),
        Scoring(lambda x: torch.where(x[:, 0] == 4, torch.nan, x[:, 0]), 8, lambda: None, beside) as scoring,
    ):
        add_all(scoring)
        finished(lambda x: x, scoring.rewards(), torch.arange(15))
    with Scoring(lambda x: torch.where(x[:, 0] == 4, torch.nan, x[:, 0]), 8, lambda: None, beside) as scoring:
        add_all(scoring, 10)
        assert int(scoring.rewards().isnan().sum()) == 1


def test_a_stop_ends_the_wait():
    hold = threading.Event()
    try:
        with pytest.raises(StoppedError):
            calls = []

            def check():
                calls.append(1)
                if len(calls) > 2:
                    raise StoppedError("stopped")

            with Scoring(lambda x: hold.wait(30) or x[:, 0], 8, check, True) as scoring:
                add_all(scoring, 1)
                scoring.rewards()
    finally:
        hold.set()
