"""Which cut is taken of what was measured: without loss where that is enough, else what coverage is worth."""

import pytest

from pgraft_fast.diagnostics.cut import KeptGain
from pgraft_fast.finetune.cut_choice import CutOutlook, choose

BASE = 0.8


def outlooks(shares, gain=0.05, base=BASE, error=0.01):
    """Of cut 0 and of cuts with these shares kept; the reward that is predicted is all that there is to gain."""
    of_cut = [CutOutlook(0.0, 0.0, 9.0, None, base + gain, base + gain, base, base + 2 * gain)]
    for cut, share in shares.items():
        kept = KeptGain(share, error, share - 2 * error, share + 2 * error, gain, 0.01, 100, 50)
        reached = base + share * gain
        of_cut.append(CutOutlook(cut, cut, 0.0, kept, reached, reached, base, reached + gain))
    return of_cut


@pytest.mark.parametrize(
    ("shares", "lowest", "accepted", "more", "cut"),
    [
        # No loss, and training helps there: 0.96 with an error of 0.01 is no proof of 0.95.
        ({0.1: 0.99, 0.25: 0.96, 0.5: 0.5}, 0.05, 400, {}, 0.1),
        ({0.1: 0.99, 0.25: 0.98, 0.5: 0.5}, 0.05, 400, {}, 0.25),
        # Training does harm above it, or few were accepted: 2 % of 0.85 is 0.017, a quarter of the gain 0.0125.
        ({0.1: 0.99, 0.25: 0.8, 0.5: 0.7}, 0.6, 400, {}, 0.25),
        ({0.1: 0.99, 0.25: 0.8, 0.5: 0.7}, 0.0, 63, {}, 0.25),
        ({0.1: 0.99, 0.25: 0.8, 0.5: 0.7}, 0.0, 64, {}, 0.1),
        # A gain of 0.5: each tenth of it is 4 % of the reward.
        ({0.1: 0.99, 0.25: 0.8, 0.5: 0.7}, 0.6, 400, {"gain": 0.5}, 0.1),
        # Rewards may be far from 0, or below.
        ({0.1: 0.99, 0.25: 0.8, 0.5: 0.1}, 0.6, 400, {"base": 1000.0}, 0.25),
        ({0.1: 0.99, 0.25: 0.8, 0.5: 0.1}, 0.6, 400, {"base": -0.8}, 0.25),
        # Already the smallest cut loses too much.
        ({0.1: 0.7, 0.25: 0.5}, 1.0, 400, {}, 0.0),
        # A share over 1 gives up nothing.
        ({0.1: 1.0, 0.25: 1.1}, 0.6, 30, {"error": 0.2}, 0.25),
        ({}, 0.6, 30, {}, 0.0),
        # Without a pilot nothing is known of harm.
        ({0.1: 0.99, 0.25: 0.8}, None, 30, {}, 0.1),
    ],
)
def test_the_cut(shares, lowest, accepted, more, cut):
    chosen, sentence = choose(outlooks(shares, **more), lowest, accepted)
    assert chosen == cut and sentence.startswith(f"The cut is {cut:g}: ") and sentence.endswith(".")


def test_the_sentence_tells_why_and_what_it_costs():
    measured = outlooks({0.1: 0.99, 0.25: 0.8})
    assert choose(measured, 0.0, 400)[1] == (
        "The cut is 0.1: the decision keeps at least 95% of its gain down to a cut of 0.1, and training helps at every "
        "noise level."
    )
    assert choose(measured, 0.6, 400)[1] == (
        "The cut is 0.25: training helps only above 0.60 of the steps, and this cut gives up 1.2% of the reward at "
        "most (0 keeps 100%, 0.1 keeps 99%, 0.25 keeps 80%)."
    )
    assert "only 30 candidates of a round are accepted, which a model gives again" in choose(measured, 0.0, 30)[1]
    assert "but every larger cut costs too much of the gain" in choose(outlooks({0.1: 0.7}), 1.0, 400)[1]
    assert choose(outlooks({0.1: 0.99}), 0.6, 400)[1].endswith(
        "down to a cut of 0.1, the largest one that was measured."
    )
    assert choose(measured, None, 400)[1].endswith("down to a cut of 0.1; there was no room for a pilot.")


def test_a_cut_that_was_not_measured_is_not_taken():
    measured = [*outlooks({0.1: 0.99}), CutOutlook(0.25, 0.25, 0.0, None)]
    assert choose(measured, 0.6, 30)[0] == 0.1
