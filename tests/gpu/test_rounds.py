"""Rounds of every method on a GPU, with prompts that lie on the host: class-conditional digits."""

import pytest
import torch

pytest.importorskip("pydantic")
pytest.importorskip("sklearn")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

from gpu_graphs import own_failures  # noqa: E402, F401

import pgraft_fast as pf  # noqa: E402
from pgraft_fast.finetune import FinetuneSettings, SampleSettings, SelectSettings, Trainer, TrainSettings  # noqa: E402
from pgraft_fast.sampling import graphs, guided  # noqa: E402
from pgraft_fast.tasks.digits.task import DigitsSettings, digits_task  # noqa: E402


def trainer(folder, **options):
    task = digits_task(DigitsSettings())
    settings = FinetuneSettings(
        sample=SampleSettings(prompts=4, candidates=8, steps=6, batch_size=16, **options.pop("sample", {})),
        select=SelectSettings(rule="top_k", k=2), **options,
    )  # fmt: skip
    return Trainer(
        task.model.cuda(), task.schedule, lambda samples, prompts, sample_ids: samples.flatten(1).mean(dim=1),
        settings, shape=task.shape, parameterization=task.parameterization, prompts=task.prompts, run=folder,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("objective", ["state", "clean", "contrast"])
@pytest.mark.parametrize("method", ["pgraft", "graft"])
def test_rounds_of_the_cut(tmp_path, method, objective, mode):
    train = TrainSettings(objective=objective, rounds=2, steps=3, batch_size=8)
    made = trainer(tmp_path, method=method, mode=mode, train=train)
    before = [weight.clone() for weight in made.tuned.parameters()]
    made.run_rounds()
    assert made.rounds_done == 2
    assert any(not torch.equal(*pair) for pair in zip(before, made.tuned.parameters(), strict=True))
    assert not graphs._failed


@pytest.mark.parametrize("objective", ["state", "clean", "contrast"])
def test_captured_steps_are_the_eager_ones(tmp_path, objective):
    weights = []
    for mode in ("graph_sampling", "graph"):
        train = TrainSettings(objective=objective, rounds=2, steps=6, batch_size=8)
        made = trainer(tmp_path / mode, mode=mode, train=train)
        made.run_rounds()
        weights.append(torch.cat([weight.flatten() for weight in made.tuned.parameters()]))
    assert not graphs._failed
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["ddpo", "nft"])
def test_rounds_without_a_cut(tmp_path, method):
    made = trainer(tmp_path, method=method, train=TrainSettings(rounds=2), sample={"solver": "ddpm"})
    before = [weight.clone() for weight in made.tuned.parameters()]
    made.run_rounds()
    assert made.rounds_done == 2
    assert any(not torch.equal(*pair) for pair in zip(before, made.tuned.parameters(), strict=True))


def test_guided_rollouts():
    task = digits_task(DigitsSettings())
    assert task.prompts.null is not None
    result = pf.rollout(
        guided(task.model.cuda(), 2.0, task.prompts.null), task.schedule, shape=task.shape, n=10, steps=5,
        parameterization=task.parameterization, condition=torch.arange(10), device="cuda",
    )  # fmt: skip
    assert bool(result.x_0.isfinite().all())
