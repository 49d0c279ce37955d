"""Rollouts of a driven pipeline: the handover at a cut, batches, and samples that depend on their numbers alone."""

import pytest
import torch
from every_pipeline import SERVED, build, call_of, prompts_of

from pgraft_fast import rollout
from pgraft_fast.finetune.settings import TrainSettings
from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.facts import facts_of
from pgraft_fast.pipelines.loras import Lora
from pgraft_fast.tasks.pipeline import pipeline_task

QUICK = ("sdxl", "flux", "wan", "sd_img2img", "sd_inpaint", "stable_audio")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.faults) for name in SERVED]


def task_of(name):
    """With a LoRA in it that changes nothing yet."""
    pipe = build(name)
    facts = facts_of(Calls(pipe, prompts_of(name)[:2], call_of(name)))
    task, _ = pipeline_task(facts, ["0"], ["1"], Lora(rank=2), 0)
    return task, task.learner(TrainSettings(ema=0.0))


@pytest.mark.parametrize("name", NAMES)
def test_a_tuned_model_that_equals_the_reference(name):
    """Bit for bit at three cuts, by another path through the adapters at each; and off the path once it differs."""
    task, learner = task_of(name)
    draw = {
        "shape": task.shape, "steps": 5, "parameterization": task.parameterization, "seed": 4,
        "solver": "euler_sde" if task.parameterization == "velocity" else "ddpm",
        "sample_ids": torch.tensor([3, 8, 5]), "condition": torch.tensor([0, 0, 1]),
    }  # fmt: skip
    plain = rollout(task.model, task.schedule, **draw)
    for cut in (0.25, 0.5, 0.75):
        result = rollout(task.model, task.schedule, tuned=learner.ema, cut=cut, **draw)
        assert torch.equal(result.x_0, plain.x_0)
    with torch.no_grad():
        for weight in learner._averages.by_name.values():
            weight.add_(0.5)
    moved = rollout(task.model, task.schedule, tuned=learner.ema, cut=0.75, cuts=(0.75,), **draw)
    kept = rollout(task.model, task.schedule, cuts=(0.75,), **draw)
    assert not torch.equal(moved.x_cut[0.75], kept.x_cut[0.75])
    assert torch.equal(rollout(task.model, task.schedule, **draw).x_0, plain.x_0)
    task.model.close()


@pytest.mark.parametrize("name", ["sd", "sd_inpaint", "sd_img2img", "flux_fill", "ltx"])
def test_a_sample_is_the_same_in_any_batch(name):
    """Its noise, and what is drawn for it while a picture is encoded, depend on seed and number alone."""
    task, _ = task_of(name)
    draw = {"shape": task.shape, "steps": 3, "parameterization": task.parameterization, "seed": 4}
    ids, prompts = torch.tensor([3, 8, 5, 11]), torch.tensor([0, 0, 1, 0])
    whole = rollout(task.model, task.schedule, sample_ids=ids, condition=prompts, **draw).x_0
    for row in range(4):
        single = rollout(
            task.model, task.schedule, sample_ids=ids[row : row + 1], condition=prompts[row : row + 1], **draw
        )
        assert float((single.x_0[0] - whole[row]).abs().max()) <= 1e-4 * float(whole[row].abs().max())
    task.model.close()
