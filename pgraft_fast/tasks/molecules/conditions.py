"""What a molecule is asked for by: its number of atoms, "19 atoms", or its formula, "C4H8O2".

A condition is a row of slots (N,) int64: -1 no atom, 0 ... 4 an atom of this element of SYMBOLS, 5 an atom of an
element that is not said. Atoms come first; their order means nothing.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.molecules.elements import MAX_ATOMS, NO_ATOM, SYMBOLS

ANY_ELEMENT = len(SYMBOLS)
_EXAMPLES = "'19 atoms' or 'C4H8O2'"
_SIZE = re.compile(r"([0-9]{1,9}) atoms?", re.ASCII)
_FORMULA = re.compile(r"(?:[A-Z][a-z]?[0-9]{0,9})+", re.ASCII)
_PART = re.compile(r"([A-Z][a-z]?)([0-9]*)", re.ASCII)


def condition_of(texts: Sequence[str], n_max: int = MAX_ATOMS) -> Tensor:
    """(len(texts), n_max) int64. Raises InputError for a text that is neither a size nor a formula, or does not fit."""
    rows = [_slots(text, n_max) for text in texts]
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), n_max)


def atoms(condition: Tensor) -> Tensor:
    """(B, N) bool: the slots that are atoms, of a condition (B, N)."""
    return condition != NO_ATOM


def counts(condition: Tensor) -> Tensor:
    """(B,) int64: numbers of atoms of a condition (B, N)."""
    return atoms(condition).sum(dim=1)


def size_text(count: int) -> str:
    """What `condition_of` reads as this number of atoms."""
    return f"{count} atoms" if count != 1 else "1 atom"


def formula_text(elements: Sequence[int]) -> str:
    """A formula in Hill's order: carbon, hydrogen, others by letter; all by letter where there is no carbon.

    elements: numbers of SYMBOLS, -1 for no atom. Source: Hill, J. Am. Chem. Soc. 22, 478, 1900.
    """
    present = {SYMBOLS[element] for element in elements if element != NO_ATOM}
    order = sorted(present, key=lambda symbol: ("CH".find(symbol) % 3 if "C" in present else 0, symbol))
    number = {symbol: sum(element == SYMBOLS.index(symbol) for element in elements) for symbol in order}
    return "".join(symbol if n == 1 else f"{symbol}{n}" for symbol, n in number.items())


@lru_cache(maxsize=65536)
def _slots(text: str, n_max: int) -> tuple[int, ...]:
    stripped = text.strip()
    size = _SIZE.fullmatch(stripped)
    slots = (ANY_ELEMENT,) * min(int(size[1]), n_max + 1) if size else _formula_slots(text, stripped, n_max)
    if not slots:
        raise InputError(f"prompt {text!r} asks for no atom; write {_EXAMPLES}")
    if len(slots) > n_max:
        raise InputError(f"prompt {text!r} asks for more than {n_max} atoms, the most that this model knows")
    return slots + (NO_ATOM,) * (n_max - len(slots))


def _formula_slots(text: str, formula: str, n_max: int) -> tuple[int, ...]:
    if not _FORMULA.fullmatch(formula):
        charge = ", which has a charge or a sign" if re.search(r"[+\-]", formula) else ""
        raise InputError(f"prompt {text!r} is neither a number of atoms nor a formula{charge}; write {_EXAMPLES}")
    slots: list[int] = []
    for symbol, digits in _PART.findall(formula):
        if symbol not in SYMBOLS:
            raise InputError(f"prompt {text!r}: element {symbol!r} is unknown; known: {', '.join(SYMBOLS)}")
        slots += [SYMBOLS.index(symbol)] * min(int(digits or 1), n_max + 1)
    return tuple(sorted(slots))
