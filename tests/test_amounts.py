"""Times and energies as they are told."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgraft_fast.amounts import apart, duration, energy

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
TOLD = [
    (0.0, "0 s"), (3e-9, "0.00300 us"), (4.12e-4, "412 us"), (0.0009996, "1.00 ms"), (0.0123, "12.3 ms"),
    (0.9999, "1.00 s"), (1.0, "1.00 s"), (59.96, "60.0 s"), (100.0, "100 s"), (119.9, "2.00 min"), (300.0, "5.00 min"),
    (7199.0, "2.00 h"), (86400.0, "24.0 h"), (3.6e6, "1,000 h"), (3.6e6 * 12.345, "12,345 h"), (-0.5, "-500 ms"),
    (math.inf, "inf s"),
]  # fmt: skip


@pytest.mark.parametrize(("seconds", "text"), TOLD)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_energy():
    values = (0.0, 4.56e-3, 0.9999, 456.0, 1234.0, 5.6e7)
    assert [energy(value) for value in values] == ["0 J", "4.56 mJ", "1.00 J", "456 J", "1.23 kJ", "56.0 MJ"]


@given(st.floats(1e-6, 1e9))
def test_drawn_durations_keep_three_digits(seconds):
    number, unit = duration(seconds).split()
    assert float(number.replace(",", "")) * UNITS[unit] == pytest.approx(seconds, rel=5.1e-3)
    assert not re.search(r"e|^0\.0", number)


@given(st.floats(1e-3, 1e6), st.floats(1e-9, 1.0))
def test_drawn_pairs_are_told_apart(seconds, more):
    larger = seconds * (1.0 + more)
    first, second = apart(duration, seconds, larger)
    assert first != second
    assert apart(duration, seconds, seconds) == (duration(seconds),) * 2
