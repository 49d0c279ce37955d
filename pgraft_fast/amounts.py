"""Times and energies as a person reads them: a unit that fits, and digits that mean something at any size."""

import math
from collections.abc import Callable, Sequence

# (in the base unit, name), and from how much on the next one is taken.
_TIMES = ((1e-6, "us", 1e3), (1e-3, "ms", 1e3), (1.0, "s", 120.0), (60.0, "min", 120.0), (3600.0, "h", math.inf))
_ENERGIES = ((1e-6, "uJ", 1e3), (1e-3, "mJ", 1e3), (1.0, "J", 1e3), (1e3, "kJ", 1e3), (1e6, "MJ", math.inf))
_MOST_DIGITS = 15


def duration(seconds: float, digits: int = 3) -> str:
    """ "412 us", "12.3 ms", "4.56 s", "1.67 min", "2.05 h"."""
    return _text(seconds, _TIMES, digits)


def energy(joules: float, digits: int = 3) -> str:
    """ "12.3 mJ", "456 J", "1.23 kJ"."""
    return _text(joules, _ENERGIES, digits)


def apart(tell: Callable[[float, int], str], amount: float, other: float) -> tuple[str, str]:
    """Both told, with so many digits that amounts that differ are told differently."""
    for digits in range(3, _MOST_DIGITS):
        first, second = tell(amount, digits), tell(other, digits)
        if first != second or amount == other:
            break
    return first, second


def _text(amount: float, units: Sequence[tuple[float, str, float]], digits: int) -> str:
    if amount == 0.0 or not math.isfinite(amount):
        return f"{amount:g} {next(name for size, name, _ in units if size == 1.0)}"
    size, name = next((size, name) for size, name, end in units if _rounded(abs(amount) / size, digits) < end)
    number = _rounded(abs(amount) / size, digits)
    sign = "-" if amount < 0.0 else ""
    decimals = max(0, digits - 1 - math.floor(math.log10(number))) if number else 0
    return f"{sign}{number:,.{min(decimals, _MOST_DIGITS)}f} {name}"


def _rounded(number: float, digits: int) -> float:
    """To so many significant digits; whole numbers stay whole."""
    return number if number == 0.0 else round(number, max(0, digits - 1 - math.floor(math.log10(number))))
