"""Rounds of guided text to image with a LoRA as CUDA graphs: the states of eager ones, in two graphs a run."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("pydantic")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

from gpu_graphs import own_failures  # noqa: E402, F401

from pgraft_fast.commands.comparison import ComparisonSettings  # noqa: E402
from pgraft_fast.commands.subjects import subject_of  # noqa: E402
from pgraft_fast.finetune import Ledger, collect  # noqa: E402
from pgraft_fast.runs.run import trainer_of  # noqa: E402
from pgraft_fast.sampling import GraphCache, graphs  # noqa: E402

CALLS = 6_000


def subject(folder, method="pgraft", calls=CALLS, **more):
    lora = {"lora.targets": ["to_q", "to_k", "to_v", "to_out.0"]}
    options = tuple({"model.device": "cuda", "sample.batch_size": 16, **lora, **more}.items())
    return subject_of(ComparisonSettings(steps=6, more=options).of(method, calls, 0, folder), print)


@pytest.mark.parametrize("shipped", ["sd", "sd3"])
def test_rounds_read_their_own_prompts(tmp_path, shipped):
    run_subject = subject(tmp_path, **{"sample.candidates": 4, "model.shipped": shipped})
    task, config, cache_of_all = run_subject.task, run_subject.config, GraphCache()
    for weight in run_subject.learner.ema.parameters():
        weight.data.add_(0.02 * torch.randn_like(weight))
    for round_ in range(2):
        eager, graphed = (
            collect(
                task.model, task.schedule, run_subject.reward, task.prompts, config, shape=task.shape, round_=round_,
                parameterization=task.parameterization, cuts=(0.25,), tuned=run_subject.learner.ema, device="cuda",
                graphs=cache,
            )
            for cache in (None, cache_of_all)
        )  # fmt: skip
        torch.testing.assert_close(graphed.rollout.x_0, eager.rollout.x_0, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(graphed.rollout.x_cut[0.25], eager.rollout.x_cut[0.25], atol=1e-3, rtol=1e-3)
    # A side each, and the last batch of a round may be smaller.
    assert len(cache_of_all) in (2, 4)


@pytest.mark.parametrize("mode", ["eager", "graph", "compile_graph"])
def test_a_run(tmp_path, mode):
    run_subject = subject(tmp_path, mode=mode)
    trainer = trainer_of(run_subject, tmp_path, Ledger())
    trainer.run_rounds()
    assert trainer.rounds_done == 1 and not graphs._failed


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_cut_is_chosen(tmp_path, mode):
    more = {"train.cut": "auto", "sample.candidates": 4, "budget.model_calls": 20_000}
    run_subject = subject(tmp_path, mode=mode, **more)
    trainer = trainer_of(run_subject, tmp_path, Ledger())
    trainer.run_rounds()
    assert trainer.rounds_done == 1 and isinstance(trainer.chosen.cut, float) and not graphs._failed


@pytest.mark.parametrize("mode", ["eager", "graph_sampling"])
def test_samples_are_those_of_the_newest_weights(tmp_path, mode):
    """After several rounds, each of which sampled and trained."""
    run_subject = subject(tmp_path, "nft", 3 * CALLS, mode=mode)
    trainer = trainer_of(run_subject, tmp_path, Ledger())
    trainer.run_rounds()
    assert trainer.rounds_done >= 3 and not graphs._failed
    tuned, x = trainer.tuned, torch.randn(2, *run_subject.task.shape, device="cuda")
    t, condition = torch.tensor([0.9, 0.5], device="cuda"), torch.tensor([0, 1], device="cuda")
    run_subject.task.prompts.prepare(condition.cpu())
    with torch.no_grad():
        merged, beside = tuned(x, t, condition), tuned.like(samples=False)(x, t, condition)
        base = run_subject.task.model(x, t, condition)
    assert float((merged - beside).norm()) < 0.05 * float((base - beside).norm())
