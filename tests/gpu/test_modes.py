"""Whole runs from Python on a GPU, with the mode left open."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("pydantic")
pytest.importorskip("jinja2")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

import every_pipeline  # noqa: E402
from gpu_graphs import own_failures  # noqa: E402, F401

import pgraft_fast as pf  # noqa: E402
from pgraft_fast.finetune import Learner, collect  # noqa: E402
from pgraft_fast.sampling import GraphCache  # noqa: E402


def brightness(media, prompts):
    return [float(picture.astype("float64").mean()) for picture in media]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["sd", "flux", "wan"])
def test_a_run(tmp_path, monkeypatch, name, dtype):
    monkeypatch.setenv("PGRAFT_FAST_CACHE", str(tmp_path / "cache"))
    pipe, lines = every_pipeline.build(name).to("cuda", dtype), []
    config = pf.PGraftConfig(
        steps=4, candidates=4, keep=1, prompts=2, rounds=2, epochs=1, batch_size=2, evaluate=4, cut=0.5,
        lora=pf.Lora(rank=2), run=str(tmp_path / "run"),
    )  # fmt: skip
    result = pf.PGraftTrainer(
        pipe, brightness, every_pipeline.prompts_of(name), config, call=every_pipeline.call_of(name), log=lines.append
    ).train()
    assert any(line.startswith("mode = ") and "the fastest of eager, graph_sampling" in line for line in lines)
    assert any(line.startswith("memory = 'auto'") and "samples drawn" in line for line in lines)
    assert len(result.history) == 2 and result.adapter.exists() and result.report.exists()


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_in_bfloat16(tmp_path, monkeypatch, mode, seed):
    """Of the smallest Flux all scores of a query can be far below 0, which cuDNN's attention does not bear."""
    finite, may_move = [], Learner.may_move
    monkeypatch.setattr(Learner, "may_move", lambda learner, norm: finite.append(may_move(learner, norm)) or finite[-1])
    pipe = every_pipeline.build("flux").to("cuda", torch.bfloat16)
    config = pf.PGraftConfig(
        steps=4, candidates=4, keep=1, prompts=2, rounds=2, epochs=4, batch_size=2, evaluate=4, cut=0.5, seed=seed,
        lora=pf.Lora(rank=2), run=str(tmp_path / "run"), mode=mode, memory="fixed",
    )  # fmt: skip
    pf.PGraftTrainer(
        pipe, brightness, every_pipeline.prompts_of("flux"), config, call=every_pipeline.call_of("flux")
    ).train()
    assert len(finite) >= 8 and all(finite)


@pytest.mark.parametrize("name", ["sd", "flux", "wan"])
def test_states_in_bfloat16(tmp_path, name):
    """Those of graphs are finite, and those of calls as they are; with a LoRA that is something."""
    pipe = every_pipeline.build(name).to("cuda", torch.bfloat16)
    config = pf.PGraftConfig(
        steps=4, candidates=4, keep=1, prompts=2, batch_size=2, cut=0.5, lora=pf.Lora(rank=2),
        run=str(tmp_path / "run"), mode="graph_sampling", memory="fixed",
    )  # fmt: skip
    trainer = pf.PGraftTrainer(
        pipe, brightness, every_pipeline.prompts_of(name), config, call=every_pipeline.call_of(name)
    )
    subject = trainer._subject()
    task, tuned, cache = subject.task, subject.learner.ema, GraphCache()
    for weight in tuned.parameters():
        weight.data.add_(0.02 * torch.randn_like(weight))
    for round_ in range(2):
        eager, graphed = (
            collect(
                task.model, task.schedule, subject.reward, task.prompts, subject.config, shape=task.shape,
                parameterization=task.parameterization, round_=round_, cuts=(0.5,), tuned=tuned, device="cuda",
                graphs=graphs,
            ).rollout
            for graphs in (None, cache)
        )  # fmt: skip
        for states in (eager.x_0, graphed.x_0, graphed.x_cut[0.5]):
            assert bool(states.isfinite().all())
        torch.testing.assert_close(graphed.x_0, eager.x_0, atol=0.05, rtol=0.05)
    subject.close()
