"""Signs of life, with a clock that is turned by hand."""

import pytest
import torch.distributed as dist
from clock import Clock

from pgraft_fast.ranks.environment import UNEXPECTED
from pgraft_fast.ranks.lifeline import Lifeline


class Ranks:
    """Of one store. ended: (rank, status) of those that were made to leave."""

    def __init__(self, size):
        self.clock, self.store, self.ended = Clock(), dist.HashStore(), []
        self.of = [
            Lifeline(
                self.store, rank, size, silent=15.0, grace=10.0, clock=self.clock,
                end=lambda status, rank=rank: self.ended.append((rank, status)),
            )
            for rank in range(size)
        ]  # fmt: skip

    def turn(self, seconds, *ranks):
        for _ in range(seconds):
            self.clock.now += 1.0
            for rank in ranks:
                self.of[rank].turn()


def test_all_alive():
    ranks = Ranks(3)
    ranks.turn(100, 0, 1, 2)
    assert [lifeline.failure for lifeline in ranks.of] == [None] * 3 and not ranks.ended


def test_one_that_dies_is_named_and_the_others_leave(capsys):
    ranks = Ranks(3)
    ranks.turn(5, 0, 1, 2)
    ranks.turn(15, 0, 1)
    assert ranks.of[1].failure is None
    ranks.turn(3, 0, 1)
    failure = "rank 2 has given no sign of life for 15 s: it was killed or hangs"
    assert [ranks.of[rank].failure for rank in (0, 1)] == [failure] * 2
    assert not ranks.ended
    # They have ten seconds to come to where they ask; 15 + 10 is less than 30.
    ranks.turn(11, 0, 1)
    assert {rank for rank, _ in ranks.ended} == {0, 1} and {status for _, status in ranks.ended} == {UNEXPECTED}
    assert "rank 2" in capsys.readouterr().err


def test_one_line_for_all(capsys):
    ranks = Ranks(4)
    ranks.turn(2, 0, 1, 2, 3)
    ranks.of[3].tell("rank 3: the reward is broken")
    ranks.turn(1, 0, 1, 2)
    assert {ranks.of[rank].failure for rank in (0, 1, 2)} == {"rank 3: the reward is broken"}
    # The first one told stands.
    ranks.of[1].tell("rank 1: something else")
    ranks.turn(1, 3)
    assert ranks.of[3].failure == "rank 3: the reward is broken"
    ranks.turn(15, 0, 1, 2, 3)
    assert capsys.readouterr().err == ""


def test_one_that_is_done_or_has_not_begun_is_not_missed():
    ranks = Ranks(3)
    ranks.turn(60, 0, 1)
    assert ranks.of[1].failure is None
    ranks.turn(1, 2)
    ranks.of[2].close()
    ranks.turn(60, 0, 1)
    assert [ranks.of[rank].failure for rank in (0, 1)] == [None, None] and not ranks.ended


def test_who_is_behind():
    ranks = Ranks(3)
    for lifeline, passed in zip(ranks.of, (7, 4, 7), strict=True):
        lifeline.passed = passed
    ranks.turn(1, 0, 1, 2)
    assert ranks.of[0].behind() == [1] and ranks.of[1].behind() == []


class Broken:
    def __getattr__(self, name):
        raise_ = RuntimeError("Connection reset by peer")

        def fail(*args):
            raise raise_

        return fail


def test_without_the_launcher():
    ended, clock = [], Clock()
    lifeline = Lifeline(Broken(), 1, 2, grace=10.0, clock=clock, end=ended.append)
    lifeline.turn()
    assert "is gone" in lifeline.failure and not ended
    lifeline.tell("anything")
    clock.now += 11.0
    lifeline.turn()
    assert ended == [UNEXPECTED]
    lifeline.close()
    with pytest.raises(RuntimeError):
        Broken().set()


def test_what_all_have_agreed_on_is_past():
    """A budget that ends within a round is raised on all ranks, and the run goes on."""
    ranks = Ranks(3)
    ranks.of[0].tell("rank 0: the time is up")
    ranks.turn(2, 0, 1, 2)
    for lifeline in ranks.of:
        lifeline.settle()
    ranks.turn(30, 0, 1, 2)
    assert [lifeline.failure for lifeline in ranks.of] == [None] * 3 and not ranks.ended
    # The next one is heard of again.
    ranks.of[2].tell("rank 2: no")
    ranks.turn(1, 0, 1, 2)
    assert [lifeline.failure for lifeline in ranks.of] == ["rank 2: no"] * 3
