"""LoRA and full learners on a pipeline's denoiser: what is trained, what stays, and that one network serves all."""

import re

import pytest
import torch
from denoisers import SETTINGS, answer, denoiser, learn
from pipelines import build
from repeats import repeats

from pgraft_fast.errors import InputError
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.pipelines.learners import FullLearner, LoraLearner
from pgraft_fast.pipelines.loras import Lora
from pgraft_fast.pipelines.ways import UNGUIDED
from pgraft_fast.sampling import calls_of


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_the_lora_is_trained_and_the_reference_stays(name):
    pipe = build(name)
    model = denoiser(pipe, 3.0)
    before = answer(model)
    learner = LoraLearner(model, SETTINGS, Lora(rank=2), seed=1)
    # A new LoRA changes nothing.
    for variant in (learner.reference, learner.ema, learner.sampled):
        assert torch.allclose(answer(variant), before, atol=1e-6)
    report = learn(learner)
    assert report.steps == 2 and torch.isfinite(torch.tensor(report.loss))
    assert torch.allclose(answer(learner.reference), before, atol=1e-6)
    tuned, averaged = answer(learner.sampled), answer(learner.ema)
    assert not torch.allclose(tuned, before, atol=1e-4)
    assert 0 < float((averaged - before).norm()) < float((tuned - before).norm())
    trained = [name for name, weight in model.net.named_parameters() if weight.requires_grad]
    assert trained and all(".tuned." in name for name in trained)
    # Whichever was used last, training goes on.
    answer(learner.ema)
    assert learn(learner).rejected == 0
    assert not torch.equal(answer(learner.sampled), tuned)


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("sd", "to_out", r"attn1.to_out \(ModuleList\) takes no LoRA; in it are to_out.0$"),
        ("sd", "attn2", r"\(Attention\) takes no LoRA; in it are attn2.to_q, attn2.to_k, attn2.to_v, attn2.to_out.0$"),
        ("sd", "mid_block", r"mid_block \(UNetMidBlock2DCrossAttn\) .* and \d+ more$"),
        ("sdxl", "conv_act", r"conv_act \(SiLU\) takes no LoRA$"),
        ("sd3", "norm1_context.norm", r"\(LayerNorm\) takes no LoRA$"),
        ("flux", "to_out.1", r"\(Dropout\) takes no LoRA$"),
        ("sd", "to_queue", r"no layer of UNet2DConditionModel has the name 'to_queue'$"),
        ("sd", "o_q", r"no layer of UNet2DConditionModel has the name 'o_q'$"),
    ],
)
def test_targets_that_take_no_lora_are_named(name, target, message):
    model = denoiser(build(name), 3.0)
    with pytest.raises(InputError, match=rf"lora.targets=\['to_q', '{re.escape(target)}'\]: .*{message}"):
        LoraLearner(model, SETTINGS, Lora(rank=2, targets=["to_q", target]), seed=1)
    # Nothing was put in.
    assert not any("lora" in name for name, _ in model.net.named_parameters())


@pytest.mark.parametrize("target", ["conv_in", "time_embedding.linear_1", "conv1", "to_out.0", "linear_2"])
def test_other_layers_take_a_lora(target):
    """Convolutions, embeddings, and layers that no other one contains."""
    pipe = build("sd")
    model = denoiser(pipe, 3.0)
    before = answer(model)
    learner = LoraLearner(model, SETTINGS, Lora(rank=2, targets=[target]), seed=1)
    learn(learner)
    assert not torch.equal(answer(learner.sampled), before)


def test_twins_with_other_linear_layers_share_the_lora():
    pipe = build("sd")
    learner = LoraLearner(denoiser(pipe, 2.0), SETTINGS, Lora(rank=2), seed=1)
    run = Execution("eager", torch.device("cpu"))
    run._twins = True
    learner.run, sampled, reference = run.of(learner.run), run.of(learner.sampled), run.of(learner.reference)
    assert sampled.calls_a_sample == 2 and learner.run.calls_a_sample == 1
    before = answer(reference)
    learn(learner)
    assert torch.allclose(answer(reference), before, atol=1e-6)
    assert not torch.allclose(answer(sampled), before, atol=1e-4)
    assert torch.allclose(answer(sampled), answer(learner.sampled), atol=1e-5)


def test_compiled_is_the_network_alone(monkeypatch):
    """One graph of it, whatever prompts and times are asked for, and the same answers with a LoRA and without; one that
    is added to the weights takes none of its own.
    """
    graphs, compile_ = [], torch.compile

    def counted(graph, inputs):
        graphs.append(sum(node.op in {"call_module", "call_function"} for node in graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda net: compile_(net, backend=counted))
    pipe = build("sd")
    learner = LoraLearner(denoiser(pipe, 3.0), SETTINGS, Lora(rank=2), seed=1)
    learn(learner)
    run = Execution("compile", torch.device("cpu"))
    for model, new in ((learner.reference, 1), (learner.ema, 0), (learner.sampled, 1)):
        compiled = run.of(model)
        assert run.of(model) is compiled and run.original(compiled) is model
        wanted = answer(model)
        before = len(graphs)
        assert torch.allclose(answer(compiled), wanted, atol=1e-5)
        assert len(graphs) == before + new and graphs[-1] > 100
        x = torch.randn(2, *model.facts.shape)
        for numbers, times in (([0, 0], [0.2, 0.3]), ([2, 1], [0.8, 0.1])):
            arguments = x, torch.tensor(times), torch.tensor(numbers)
            with torch.no_grad():
                assert torch.allclose(compiled(*arguments), model(*arguments), atol=1e-5)
        assert len(graphs) == before + new


def test_all_weights():
    pipe = build("sd")
    model = denoiser(pipe, 3.0)
    before = answer(model)
    learner = FullLearner(model, SETTINGS)
    learn(learner)
    assert torch.equal(answer(learner.reference), before)
    assert not torch.allclose(answer(learner.sampled), before, atol=1e-4)
    assert learner.run.calls_a_sample == 1 and learner.sampled.calls_a_sample == 2


def test_weights_are_saved_and_loaded_with_the_same_future():
    results = []
    for stop in (False, True):
        pipe = build("sd")
        learner = LoraLearner(denoiser(pipe, 3.0), SETTINGS, Lora(rank=2), seed=1)
        learn(learner)
        if stop:
            tensors = {name: {k: v.clone() for k, v in group.items()} for name, group in learner.tensors().items()}
            steps, pipe = learner.steps_done, build("sd")
            learner = LoraLearner(denoiser(pipe, 3.0), SETTINGS, Lora(rank=2), seed=9)
            learner.load(tensors, steps)
        learn(learner)
        results.append(learner.weights()["ema"])
    assert results[0] and all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_micro_batches_checkpointing_and_short_memory_change_nothing_but_rounding():
    weights = []
    for size, checkpointing in ((4, False), (1, False), (4, True)):
        pipe = build("sd")
        learner = LoraLearner(denoiser(pipe), SETTINGS, Lora(rank=2), seed=1)
        if checkpointing:
            pipe.unet.enable_gradient_checkpointing()
        learn(learner, memory=BatchSize(size))
        weights.append(torch.cat([value.flatten() for value in learner.weights()["model"].values()]))
    scale = float(weights[0].detach().abs().max())
    assert all(float((other - weights[0]).abs().max()) < 1e-2 * scale for other in weights[1:])


def test_full_memory_halves_the_rows():
    pipe = build("sd")
    learner = LoraLearner(denoiser(pipe), SETTINGS, Lora(rank=2), seed=1)
    run = learner.run

    def short(x, t, condition):
        if x.shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return run(x, t, condition)

    learner.run = short
    memory = BatchSize(4, "training")
    assert learn(learner, memory=memory).steps == 2
    assert memory.value == 1


def test_prompts_are_dropped_at_the_rate_asked_for():
    pipe = build("sd")
    learner = LoraLearner(denoiser(pipe), SETTINGS, Lora(rank=2), seed=1)
    seen, run = [], learner.run

    def watch(x, t, condition):
        seen.append(condition.clone())
        return run(x, t, condition)

    learner.run = watch
    learner.settings = SETTINGS.model_copy(update={"null_prompt": 0.5, "steps": 30, "batch_size": 8})
    learn(learner)
    share = float((torch.cat(seen) == 2).double().mean())
    assert 0.35 < share < 0.65


def test_what_cannot_be_tuned_is_refused():
    pipe = build("sd")
    with pytest.raises(InputError, match=r"lora.targets=\['nothing'\]: no layer of UNet2DConditionModel"):
        LoraLearner(denoiser(pipe), SETTINGS, Lora(rank=2, targets=["nothing"]), seed=1)
    LoraLearner(denoiser(pipe), SETTINGS, Lora(rank=2), seed=1)
    with pytest.raises(InputError, match=r"has a LoRA already \(tuned, ema\)"):
        LoraLearner(denoiser(pipe), SETTINGS, Lora(rank=2), seed=1)


@pytest.mark.parametrize("all_weights", [False, True])
def test_contrast_starts_from_the_reference_or_from_the_averaged_weights(all_weights):
    pipe = build("sd")
    model = denoiser(pipe, 3.0)
    before = answer(model.like(way=UNGUIDED))
    settings = SETTINGS.model_copy(update={"frozen": "ema"})
    learner = FullLearner(model, settings) if all_weights else LoraLearner(model, settings, Lora(rank=2), seed=1)
    # Called as in training: without guidance.
    for variant in (learner.frozen, learner.averaged):
        assert torch.allclose(answer(variant), before, atol=1e-6)
    learn(learner)
    assert torch.allclose(answer(learner.frozen), before, atol=1e-6)
    averaged = answer(learner.averaged)
    assert not torch.allclose(averaged, before, atol=1e-5)
    learner.freeze()
    assert torch.allclose(answer(learner.frozen), averaged, atol=1e-6)
    learn(learner)
    # What was frozen stays while the average goes on, and is no part of what is saved.
    assert torch.allclose(answer(learner.frozen), averaged, atol=1e-6)
    assert not torch.allclose(answer(learner.averaged), averaged, atol=1e-5)
    assert not any("frozen" in name for group in learner.weights().values() for name in group)
    learner.freeze()
    assert torch.allclose(answer(learner.frozen), answer(learner.averaged), atol=1e-6)


@pytest.mark.parametrize(("all_weights", "scale"), [(True, 2.0), *repeats((False, 1.0), (True, 1.0), (False, 2.0))])
def test_the_averaged_weights_have_a_guidance_of_their_own(all_weights, scale):
    before = {guidance: answer(denoiser(build("sd"), guidance)) for guidance in (1.0, scale, 3.0)}
    model = denoiser(build("sd"), 3.0)
    learner = FullLearner(model, SETTINGS, scale) if all_weights else LoraLearner(model, SETTINGS, Lora(), 1, scale)
    assert torch.allclose(answer(learner.ema), before[scale], atol=1e-6)
    assert torch.allclose(answer(learner.reference), before[3.0], atol=1e-6)
    assert torch.allclose(answer(learner.averaged), before[1.0], atol=1e-6)
    assert calls_of(learner.ema) == (2 if scale > 1.0 else 1)
    # Each network is called in its own way: one's scale is no other's.
    assert torch.allclose(answer(learner.reference.like(way=scale)), before[scale], atol=1e-6)
    learn(learner)
    # It follows what is trained, as ever.
    assert not torch.allclose(answer(learner.ema), before[scale], atol=1e-5)
