"""Budgets: what fits, what does not, and the line that says so."""

import pytest
from clock import Clock
from pydantic import ValidationError

from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Budget, BudgetSettings, FinetuneSettings, Ledger


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


# (budget, a round, what of it is spent, what is told)
TOLD = [
    (2e-3, 4.5e-4, 1.6e-3, "a round takes 450 us, 400 us are left"),
    (0.5, 0.0123, 0.499, "a round takes 12.3 ms, 1.00 ms are left"),
    (100.0, 30.0, 75.0, "a round takes 30.0 s, 25.0 s are left"),
    (1e4, 1000.4, 8999.9, "a round takes 16.673 min, 16.668 min are left"),
    (1e6, 7200.0, 1e6, "a round takes 2.00 h, 0 s are left"),
]


@pytest.mark.parametrize(("wall", "takes", "spent", "message"), TOLD)
def test_times_mean_something_at_any_scale(wall, takes, spent, message):
    clock = Clock()
    budget = Budget(BudgetSettings(wall_seconds=wall), Ledger(clock=clock))
    budget.round_took(takes)
    clock.now += spent
    assert not budget.allows_round(1)
    assert budget.why_not(1) == f"budget: {message}"


def test_joules_too():
    ledger = Ledger()
    ledger.measure(iter([0.0, *[1999.5] * 9]).__next__)
    budget = Budget(BudgetSettings(joules=2000.0), ledger)
    budget.round_took(1.0, 0.75)
    assert budget.why_not(1) == "budget: a round takes 750 mJ, 500 mJ are left"


def test_nothing_left_for_a_first_round():
    """No round is known yet, so none is told."""
    clock = Clock()
    budget = Budget(BudgetSettings(wall_seconds=2e-3), Ledger(clock=clock))
    clock.now += 1.0
    with pytest.raises(InputError, match=r"^budget: of 2.00 ms nothing is left for a first round: not one round fits"):
        budget.check_first_round(1)
    ledger = Ledger()
    budget = Budget(BudgetSettings(joules=50.0), ledger)
    budget.reserve_joules = 60.0
    line = "budget: of 50.0 J nothing is left for a first round, 60.0 J are kept for saving and evaluation"
    assert budget.why_not(1) == line


def test_the_tighter_time_limit_counts():
    assert BudgetSettings(wall_seconds=100, gpu_hours=1).seconds() == 100
    assert BudgetSettings(wall_seconds=7200, gpu_hours=1).seconds() == 3600
    assert BudgetSettings().seconds() is None


@pytest.mark.parametrize("value", [{"wall_seconds": 0}, {"gpu_hours": -1}, {"model_calls": 1.5}, {"gpuhours": 1}])
def test_bad_settings(value):
    with pytest.raises(ValidationError):
        BudgetSettings(**value)


def test_gpu_hours_are_shared_by_the_ranks():
    clock = Clock()
    ledger = Ledger(clock=clock, ranks=4)
    budget = Budget(BudgetSettings(gpu_hours=0.1, wall_seconds=80.0), ledger)
    # 360 s of devices are 90 s of four; the wall's 80 are fewer.
    assert budget.seconds_left() == 80.0
    clock.now += 60.0
    assert budget.seconds_left() == 20.0
    only = Budget(BudgetSettings(gpu_hours=0.1), ledger)
    assert only.seconds_left() == 30.0
    clock.now += 30.0
    assert only.time_is_up()
    assert BudgetSettings(gpu_hours=0.1, wall_seconds=80.0).seconds(4) == 320.0
    assert BudgetSettings(gpu_hours=0.1, wall_seconds=80.0).seconds() == 80.0


@pytest.mark.parametrize(
    ("sample", "train", "at_once", "rows"),
    [
        ({"candidates": 16}, {"batch_size": 64}, 16, 6),
        ({"candidates": 16, "batch_size": 10}, {"batch_size": 64, "micro_batch": 16}, 8, 16),
        ({"candidates": 7, "batch_size": 6}, {"batch_size": 4}, 1, 1),
    ],
)
def test_batches_of_a_deterministic_run(sample, train, at_once, rows):
    """They depend on nothing but the config: a group, or even parts of it, and twelfths."""
    settings = FinetuneSettings(deterministic=True, sample=sample, train=train).in_fixed_batches()
    assert (settings.sample.batch_size, settings.train.micro_batch) == (at_once, rows)
    free = FinetuneSettings(sample=sample, train=train)
    assert free.in_fixed_batches() == free
