"""Selecting: acceptance rules and the laws that they ask for."""

from pgraft_fast.selection.copies import first_of_copies
from pgraft_fast.selection.laws import AcceptanceLaw, acceptance_law
from pgraft_fast.selection.rules import EMPTY_POLICIES, RULES, Acceptance, accept

__all__ = ["EMPTY_POLICIES", "RULES", "Acceptance", "AcceptanceLaw", "accept", "acceptance_law", "first_of_copies"]
