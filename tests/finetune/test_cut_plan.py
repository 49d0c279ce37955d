"""The plan of a cut: what it measures on digits, what it costs, what it leaves alone, and where it cannot tell."""

import json

import pytest
import torch
from small_nets import Mlp

import pgraft_fast as pf
from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError, StoppedError
from pgraft_fast.finetune import (
    FinetuneSettings,
    Learner,
    Prompts,
    SampleSettings,
    SelectSettings,
    Trainer,
    TrainSettings,
    cut_plan,
)
from pgraft_fast.finetune.cut_plan import CUTS, FALLBACK, plan_cut, share_of
from pgraft_fast.finetune.pilot import run_pilot
from pgraft_fast.tasks.digits import DigitsSettings, digits_task

FLOW = Schedule.linear_flow()


def settings(objective="state", **update):
    values = {
        "sample": SampleSettings(prompts=24, candidates=4, steps=8),
        "select": SelectSettings(k=2),
        "train": TrainSettings(steps=60, batch_size=16, learning_rate=1e-2, cut="auto", objective=objective),
    }
    return FinetuneSettings(**(values | update))


def planned(config=None, reward=lambda x: x.sum(1), **update):
    arguments = {"shape": (4,), "parameterization": "velocity", "share": 1.0} | update
    return plan_cut(Mlp(), FLOW, reward, settings() if config is None else config, **arguments)


@pytest.fixture(scope="module")
def digits():
    task = digits_task(DigitsSettings(reward="symmetry"))
    config = FinetuneSettings(
        sample=SampleSettings(prompts=100, candidates=16, steps=25), select=SelectSettings(k=4),
        train=TrainSettings(steps=200, batch_size=64, learning_rate=1e-3),
    )  # fmt: skip
    return plan_cut(
        task.model, task.schedule, task.rewards["symmetry"], config, shape=task.shape,
        parameterization=task.parameterization, prompts=task.prompts,
    ), task  # fmt: skip


def test_on_digits(digits):
    """Measured with many more: s = 0.99, 0.81 and 0.52 at these cuts; a trained P-GRAFT(0.25) reaches 0.835."""
    plan, task = digits
    assert plan.share <= 0.15
    assert [outlook.cut for outlook in plan.outlooks] == [0.0, *CUTS]
    kept = [outlook.kept for outlook in plan.outlooks[1:]]
    for estimate, aim in zip(kept, (0.99, 0.81, 0.52), strict=True):
        assert abs(estimate.share - aim) < 4 * estimate.error < 0.5
    # Fewer than 64 of the plan's own candidates were accepted; of a round of the run 400 are.
    assert plan.accepted < 64
    assert plan.cut == 0.1 and plan.reason.startswith("The cut is 0.1: the decision keeps at least 95%")
    quarter = plan.outlooks[2]
    assert quarter.low < 0.835 < quarter.high and quarter.high - quarter.low < 0.15
    assert quarter.ceiling == pytest.approx(0.833, abs=0.02)
    assert quarter.logsnr == pytest.approx(task.schedule.cut_logsnr(0.25), abs=0.3)
    assert json.loads(json.dumps(plan.to_dict(), allow_nan=False))["outlooks"][0]["logsnr"] is None


@pytest.mark.parametrize("objective", ["state", "clean", "contrast"])
def test_all_is_left_as_it_was_and_the_same_again(objective):
    learner = Learner(Mlp(), settings().train)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    first = planned(settings(objective), learner=learner)
    assert first == planned(settings(objective))
    assert learner.steps_done == 0 and not learner.optimizer.state
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert first.pilot_steps > 0 and first.levels is not None


def test_calls_are_counted():
    seen = 0

    class Counting(Mlp):
        def forward(self, x, t):
            nonlocal seen
            # A backward pass counts as two.
            seen += x.shape[0] * (3 if torch.is_grad_enabled() else 1)
            return super().forward(x, t)

    for objective in ("state", "contrast"):
        seen = 0
        plan = plan_cut(Counting(), FLOW, lambda x: x.sum(1), settings(objective), shape=(4,), share=1.0)
        assert plan.model_calls == seen
        of_run = 24 * 4 * 8 + (3 if objective == "state" else 4) * 60 * 16
        assert plan.share == pytest.approx(seen / of_run) and plan.share <= 1.0


@pytest.mark.parametrize(
    ("update", "reward", "why"),
    [
        (
            {"sample": SampleSettings(prompts=24, candidates=4, steps=8, solver="heun")},
            None,
            "draws no noise, so that s",
        ),
        ({}, lambda x: torch.ones(x.shape[0]), "the rewards are all the same"),
        ({"select": SelectSettings(rule="threshold", threshold=-1e9)}, None, "every candidate was accepted"),
        ({"select": SelectSettings(rule="threshold", threshold=3.5)}, None, "candidates were accepted, 20 are needed"),
    ],
)
def test_where_it_cannot_tell_it_says_so(update, reward, why):
    plan = planned(settings(**update), **({} if reward is None else {"reward": reward}))
    assert plan.cut == FALLBACK and plan.reason.startswith("The plan cannot tell: ") and why in plan.reason
    assert plan.levels is None and all(outlook.kept is None for outlook in plan.outlooks)


def test_what_a_pilot_gains_does_not_depend_on_how_slowly_the_average_follows(monkeypatch):
    pilots = []
    monkeypatch.setattr(cut_plan, "run_pilot", lambda *given: pilots.append(run_pilot(*given)) or pilots[-1])
    for decay in (0.0, 0.9, 0.99):
        train = TrainSettings(steps=600, batch_size=16, learning_rate=1e-3, cut="auto", ema=decay)
        planned(settings(train=train), share=0.2)
    raw, fast, slow = pilots
    assert raw.steps == fast.steps == slow.steps > 30
    assert raw.gain > 5 * raw.error
    # Averages of a path lag behind its end by about half of it.
    assert 0.4 * raw.gain < slow.gain < fast.gain < raw.gain
    assert raw.longer == pytest.approx(600 / raw.steps)
    assert raw.longer < fast.longer < 2 * raw.longer and raw.longer < slow.longer < 2 * raw.longer


def test_a_prediction_lies_among_the_rewards():
    """A contrast of great strength aims far beyond what any candidate has."""
    train = TrainSettings(steps=60, batch_size=16, learning_rate=1e-2, cut="auto", objective="contrast", strength=1e3)
    rewards = []

    def reward(x):
        rewards.append((x.sum(1) > 0.0).float())
        return rewards[-1]

    plan = planned(settings(train=train), reward)
    assert {float(value) for value in torch.cat(rewards)} == {0.0, 1.0}
    for outlook in plan.outlooks:
        assert 0.0 <= outlook.low <= outlook.predicted <= outlook.high <= 1.0
    assert plan.outlooks[0].high == 1.0


def test_a_cut_without_a_step_below_it_is_left_out():
    assert [outlook.cut for outlook in planned().outlooks] == [0.0, 0.25, 0.5]
    assert [outlook.cut for outlook in planned(cuts=(0.01,)).outlooks] == [0.0]


def test_bad_input():
    for cuts in ((), (0.5, 0.1), (0.0, 0.5), (0.5, 1.0), (0.2, 0.2)):
        with pytest.raises(InputError, match="rising shares of the steps in"):
            planned(cuts=cuts)
    with pytest.raises(InputError, match=r"plan: 1% of a run of 3,648 model calls have no room for two prompts"):
        planned(share=0.01)
    with pytest.raises(InputError, match="is chosen in the first round"):
        _ = settings().cut
    assert settings(method="graft").cut == 0.0
    assert pf.plan_cut is plan_cut


def test_share_of_a_time():
    for schedule in (FLOW, Schedule.cosine(), Schedule.edm()):
        for share in (0.0, 0.1, 0.25, 0.9):
            assert share_of(schedule, float(schedule.t_of_share(share))) == pytest.approx(share, abs=1e-3)


def trainer(run, rounds=2, **update):
    config = settings(train=TrainSettings(
        steps=60, batch_size=16, learning_rate=1e-2, cut="auto", rounds=rounds, objective="contrast",
    ))  # fmt: skip
    lines = []
    made = Trainer(Mlp(), FLOW, lambda x: x.sum(1), config, shape=(4,), parameterization="velocity", run=run,
                   prompts=Prompts(["a", "b"]), log=lines.append, **update)  # fmt: skip
    return made, lines


def test_a_run_chooses_its_cut_once_and_goes_on_with_it(tmp_path):
    straight, lines = trainer(tmp_path / "straight")
    allowed = straight.calls_of_a_round()
    straight.run_rounds()
    plan = straight.plan
    assert plan is not None and plan["reason"] in lines
    assert straight.chosen.cut == plan["cut"] in (0.0, *CUTS)
    assert straight.history[0]["t_cut"] == pytest.approx(float(FLOW.t_of_share(plan["cut"])), abs=0.13)
    assert plan["share"] <= 0.15 and straight.history[0]["model_calls"] <= allowed
    assert straight.ledger.seconds["plan"] > 0
    for rounds in (1, 2):
        parts, lines = trainer(tmp_path / "parts", rounds)
        parts.run_rounds()
    assert parts.plan == plan and not any("The cut is" in line for line in lines)
    assert [entry["reward"] for entry in parts.history] == [entry["reward"] for entry in straight.history]
    assert all(torch.equal(a, b) for a, b in zip(parts.tuned.parameters(), straight.tuned.parameters(), strict=True))


def test_a_run_that_is_stopped_while_it_plans_plans_again(tmp_path):
    straight, _ = trainer(tmp_path / "straight", 1)
    straight.run_rounds()

    def stop():
        if first.ledger._phase == "plan":
            raise StoppedError("stopped")

    first, _ = trainer(tmp_path / "run", 1, check=stop)
    with pytest.raises(StoppedError):
        first.run_rounds()
    first.ledger.close(finished=False)
    second, _ = trainer(tmp_path / "run", 1)
    second.run_rounds()
    assert second.plan == straight.plan
    assert all(torch.equal(a, b) for a, b in zip(second.tuned.parameters(), straight.tuned.parameters(), strict=True))
