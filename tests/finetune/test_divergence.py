"""Contrast trainings that diverge are told, those that are well are not, and looking changes nothing."""

import pytest
import torch
from repeats import repeats

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import (
    FinetuneSettings,
    Learner,
    SampleSettings,
    SelectSettings,
    Trainer,
    TrainSettings,
    collect,
    pgraft_loss,
    train,
    training,
)
from pgraft_fast.finetune.divergence import divergence
from pgraft_fast.finetune.training import TrainReport
from pgraft_fast.tasks.digits import DigitsSettings, digits_task


def settings_of(prompts, seed=0, **train):
    return FinetuneSettings(
        seed=seed, sample=SampleSettings(prompts=prompts, steps=12), select=SelectSettings(k=4),
        train=TrainSettings(objective="contrast", **train),
    )  # fmt: skip


def trained(folder, settings):
    """The history, and the lines about rounds that diverged."""
    task, lines = digits_task(DigitsSettings()), []
    trainer = Trainer(
        task.model, task.schedule, task.rewards["symmetry"], settings, shape=task.shape, prompts=task.prompts,
        parameterization=task.parameterization, run=folder, log=lines.append,
    )  # fmt: skip
    trainer.run_rounds()
    return trainer.history, [line for line in lines if "diverged" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "train", "figure", "limit", "mend"),
    [
        (10, {"learning_rate": 3e-2, "steps": 60}, "excess", 0.5, "lower train.learning_rate"),
        *repeats((3, {"learning_rate": 3e-3, "strength": 4.0, "steps": 150}, "change", 3.0, "lower train.strength or")),
    ],
)
def test_what_diverges_is_told_and_goes_on(tmp_path, prompts, train, figure, limit, mend):
    history, lines = trained(tmp_path, settings_of(prompts, rounds=2, **train))
    assert history[0][figure] > limit and len(history) == 2
    told = [number for number, entry in enumerate(history, 1) if "warning" in entry]
    assert lines == [f"round {number}: {history[number - 1]['warning']}" for number in told]
    assert told[0] == 1 and mend in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(("strength", "seed"), [(4.0, 1), *repeats((1.0, 0), (1.0, 1), (1.0, 2), (4.0, 0), (4.0, 2))])
def test_a_healthy_run_says_nothing(tmp_path, strength, seed):
    history, lines = trained(
        tmp_path, settings_of(30, seed, learning_rate=1e-3, steps=60, strength=strength, rounds=2)
    )  # fmt: skip
    assert not lines and not any("warning" in entry for entry in history)
    assert all(0.0 < entry["change"] < 1.5 and entry["excess"] < 0.05 for entry in history)


def test_the_figures_are_those_of_the_rows():
    """Of n, o, y and A that are known."""
    torch.manual_seed(0)
    x, noise, o, n = torch.randn(4, 6, 5, dtype=torch.float64)
    advantage, t = torch.linspace(-2, 3, 6, dtype=torch.float64), torch.linspace(0.5, 0.9, 6, dtype=torch.float64)

    def parts(answer, objective="contrast", reduction="parts", **more):
        return pgraft_loss(
            lambda x, t: answer, Schedule.cosine(), x, cut=0.3, objective=objective, parameterization="v", t=t,
            noise=noise, reduction=reduction, **more,
        )  # fmt: skip

    both = {"frozen": lambda x, t: o, "advantage": advantage}
    answer = n.clone().requires_grad_(True)
    loss, unchanged, change, spread = parts(answer, **both)
    (slope,) = torch.autograd.grad(loss, answer)
    other = n.clone().requires_grad_(True)
    mean = parts(other, reduction="mean", **both)
    assert torch.equal(loss, mean) and torch.equal(slope, torch.autograd.grad(mean, other)[0])
    at_start = parts(o, **both)
    assert torch.allclose(at_start[0], unchanged) and float(at_start[2]) < 1e-12
    # |y - o|^2 is the ordinary loss of o, and twice the way back from n to o is four times |n - o|^2.
    assert torch.allclose(spread, parts(o, "state", "mean"))
    assert torch.allclose(parts(2 * n - o, **both)[2], 4 * change)
    with pytest.raises(InputError, match="'parts' belongs to contrast"):
        parts(n, "state")


def test_looking_changes_no_weight(monkeypatch):
    task = digits_task(DigitsSettings())
    settings = settings_of(4, learning_rate=1e-3, steps=4, micro_batch=24)
    candidates = collect(
        task.model, task.schedule, task.rewards["symmetry"], task.prompts, settings, shape=task.shape,
        parameterization=task.parameterization, cuts=(0.25,),
    )  # fmt: skip

    def weights():
        learner = Learner(task.model, settings.train)
        report = train(
            learner, candidates.kept_for(0.25, settings.train), task.schedule, seed=0,
            parameterization=task.parameterization,
        )  # fmt: skip
        return learner.weights(), report

    looked, report = weights()
    assert 0.0 < report.change < 1.0 and abs(report.excess) < 0.5
    mean = {"reduction": "mean"}
    monkeypatch.setattr(training, "pgraft_loss", lambda *args, **more: pgraft_loss(*args, **more | mean))
    blind, plain = weights()
    assert plain.change is None and plain.excess is None and plain.loss == report.loss
    for group, values in blind.items():
        assert all(torch.equal(value, looked[group][name]) for name, value in values.items()), group


@pytest.mark.parametrize(
    ("change", "excess", "named"),
    [
        (None, None, None),
        (2.9, 0.49, None),
        (5.63, -6.8, "5.6 times as far"),
        (0.85, 0.86, "by 0.86 of the rows' spread"),
    ],
)
def test_limits(change, excess, named):
    line = divergence(TrainReport(1.0, 10, 0, change=change, excess=excess))
    assert line is None if named is None else named in line and "; lower train." in line and "\n" not in line
