"""Copies in a report: counts by hand, and the law that the closed form gives."""

import math

import pytest
import torch

from pgraft_fast.finetune import SelectSettings
from pgraft_fast.report.copies import copies_sections
from pgraft_fast.selection import acceptance_law

REWARD = torch.tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
COPIES = torch.tensor([[7, 7, 7, 3], [7, 9, 3, 5]])


def rows(**select):
    (section,) = copies_sections(SelectSettings(rule="binary", **select), {"reward": REWARD, "copies": COPIES})
    return section.table.rows


@pytest.mark.parametrize("copies", [None, "round", "run"])
def test_a_round(copies):
    """Six accepted: 7 three times, 3 twice, 5 once; 0.0 is no copy of anything that counts."""
    every, once = rows(copies=copies)
    assert every[1:4] == ["6", "3", "50.0 %"] and once[1:4] == ["3", "3", "33.3 %"]
    share = [3 / 6, 2 / 6, 1 / 6]
    assert float(every[4]) == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)), abs=0.05)
    assert once[4] == "3.0"
    assert float(every[5]) == pytest.approx(-math.log(6 / 8), abs=1e-3)
    law = acceptance_law("binary", n=8, masses=torch.tensor([3 / 8, 2 / 8, 1 / 8]))
    assert float(once[5]) == pytest.approx(law.kl, abs=1e-3)


def test_groups_keep_what_others_keep():
    assert rows(copies="group")[1][1:4] == ["5", "3", "40.0 %"]


def test_nothing_accepted_or_another_rule():
    nothing = {"reward": torch.zeros(2, 4), "copies": COPIES}
    assert copies_sections(SelectSettings(rule="binary"), nothing) == []
    assert copies_sections(SelectSettings(k=1), {"reward": REWARD}) == []
