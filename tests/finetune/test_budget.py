"""Budgets: what fits, what does not, and the line that says so."""

import pytest
from pydantic import ValidationError

from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Budget, BudgetSettings, Ledger


def test_without_a_budget_everything_fits():
    budget = Budget(BudgetSettings(), Ledger())
    budget.round_took(1e9)
    assert budget.allows_round(10**12)
    assert not budget.time_is_up()


def test_model_calls():
    ledger = Ledger()
    budget = Budget(BudgetSettings(model_calls=100), ledger)
    budget.check_first_round(100)
    with pytest.raises(InputError, match="a round needs 101 model calls, 100 are left: not one round fits"):
        budget.check_first_round(101)
    ledger.add_calls(60)
    assert budget.allows_round(40)
    assert not budget.allows_round(41)
    assert budget.why_not(41) == "budget: a round needs 41 model calls, 40 are left"


def test_time():
    budget = Budget(BudgetSettings(wall_seconds=100), Ledger())
    for seconds in (10.0, 10.0, 30.0):
        budget.round_took(seconds)
    assert budget.allows_round(1)
    budget.reserve = 75.0
    assert not budget.allows_round(1)
    assert "a round takes 30.0 s" in budget.why_not(1)
    assert not budget.time_is_up()
    budget.reserve = 100.0
    assert budget.time_is_up()


def test_the_tighter_time_limit_counts():
    assert BudgetSettings(wall_seconds=100, gpu_hours=1).seconds() == 100
    assert BudgetSettings(wall_seconds=7200, gpu_hours=1).seconds() == 3600
    assert BudgetSettings().seconds() is None


@pytest.mark.parametrize("value", [{"wall_seconds": 0}, {"gpu_hours": -1}, {"model_calls": 1.5}, {"gpuhours": 1}])
def test_bad_settings(value):
    with pytest.raises(ValidationError):
        BudgetSettings(**value)
