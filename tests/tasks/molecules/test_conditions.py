"""Texts that say how many atoms, or which."""

import pytest
import torch

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.molecules.conditions import ANY_ELEMENT, atoms, condition_of, counts, formula_text, size_text
from pgraft_fast.tasks.molecules.data import shipped
from pgraft_fast.tasks.molecules.elements import NO_ATOM


def test_sizes_and_formulas():
    condition = condition_of(["3 atoms", "1 atom", "C2H3NO", " OH2 ", "CH3CH2F", "5 atoms"], 8)
    assert condition.dtype == torch.int64 and condition.tolist() == [
        [5, 5, 5, -1, -1, -1, -1, -1],
        [5, -1, -1, -1, -1, -1, -1, -1],
        [0, 0, 0, 1, 1, 2, 3, -1],
        [0, 0, 3, -1, -1, -1, -1, -1],
        [0, 0, 0, 0, 0, 1, 1, 4],
        [5, 5, 5, 5, 5, -1, -1, -1],
    ]
    assert counts(condition).tolist() == [3, 1, 7, 3, 8, 5] and torch.equal(
        atoms(condition).sum(dim=1), counts(condition)
    )
    assert ANY_ELEMENT == 5 and condition_of([], 8).shape == (0, 8) and condition_of(["19 atoms"]).shape == (1, 29)


@pytest.mark.parametrize(
    ("elements", "text"),
    [
        ([0, 0, 3], "H2O"),
        ([3, 1, 0, 0, 0, 0], "CH4O"),
        ([4, 2, 1, 0, -1], "CHFN"),
        ([2, 0, 0, 0], "H3N"),
        ([1, 3, 3], "CO2"),
        ([4, 0], "FH"),
    ],
)
def test_hill_order(elements, text):
    assert formula_text(elements) == text
    slots = condition_of([text], len(elements))[0]
    assert slots.sort().values.tolist() == sorted(elements)


def test_formulas_of_the_data_are_read_as_they_are_written():
    elements = shipped().elements[::40]
    condition = condition_of([formula_text(row) for row in elements.tolist()], 23)
    assert torch.equal(condition.sort(dim=1).values, elements.sort(dim=1).values)
    sizes = (elements != NO_ATOM).sum(dim=1)
    assert torch.equal(counts(condition_of([size_text(n) for n in sizes.tolist()], 23)), sizes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^prompt '' is neither a number of atoms nor a formula; write '19 atoms' or 'C4H8O2'$"),
        ("a cat", "^prompt 'a cat' is neither"),
        ("-3 atoms", "is neither a number of atoms nor a formula, which has a charge or a sign; write"),
        ("NH4+", r"^prompt 'NH4\+' is neither .*, which has a charge or a sign; write"),
        ("C6H5Cl", "^prompt 'C6H5Cl': element 'Cl' is unknown; known: H, C, N, O, F$"),
        ("Xe", "element 'Xe' is unknown"),
        ("0 atoms", "^prompt '0 atoms' asks for no atom; write '19 atoms' or 'C4H8O2'$"),
        ("C0H0", "^prompt 'C0H0' asks for no atom"),
        ("24 atoms", "^prompt '24 atoms' asks for more than 23 atoms, the most that this model knows$"),
        ("C7H17", "^prompt 'C7H17' asks for more than 23 atoms"),
        ("999999999 atoms", "asks for more than 23 atoms"),
        ("C99999999", "asks for more than 23 atoms"),
        ("19", "is neither"),
        ("c4h8", "is neither"),
        ("C4 H8", "is neither"),
        ("\u0663 atoms", "is neither"),
    ],
)
def test_texts_that_cannot_be_read(text, message):
    with pytest.raises(InputError, match=message) as raised:
        condition_of(["3 atoms", text], 23)
    assert "\n" not in str(raised.value)
