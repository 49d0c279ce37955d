"""A LoRA in the form for sampling: the same answers, no more products than without it, the weights as they were."""

import copy
import logging

import pytest
import torch
from denoisers import SETTINGS, answer, denoiser, learn
from diffusers.hooks import HookRegistry, ModelHook
from fake_cuda import write_unseen
from pipelines import build
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pgraft_fast.pipelines.merged
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.pipelines.learners import LoraLearner
from pgraft_fast.pipelines.loras import Lora

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_linear_pointwise", "linear")


def tuned(name="sd", targets=None, dtype=torch.float32, size=0.1):
    """A learner whose LoRA changes the answers."""
    model = denoiser(build(name).to(dtype), 3.0)
    learner = LoraLearner(model, SETTINGS, Lora(rank=2, targets=targets), seed=1)
    change(learner, size)
    return learner


@torch.no_grad()
def change(learner, size=0.1, seed=2):
    generator = torch.Generator().manual_seed(seed)
    for name, weight in learner.ema.net.named_parameters():
        if ".lora_" in name:
            weight.copy_(size * torch.randn(weight.shape, generator=generator))


def weights(learner):
    return {
        name: (weight, weight.data_ptr(), weight.detach().clone())
        for name, weight in learner.ema.net.named_parameters() if "lora" not in name
    }  # fmt: skip


class Products(TorchDispatchMode):
    """How many there were."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.__name__.split(".")[0] in PRODUCTS
        return func(*args, **(kwargs or {}))


def products(model):
    with Products() as counter:
        answer(model)
    return counter.count


CASES = [("sd", None), ("sd", ["conv1", "conv2", "to_q", "proj_in"]), ("sdxl", None), ("sd3", None), ("flux", None)]


@pytest.mark.parametrize(("name", "targets"), CASES)
def test_the_same_answers(name, targets):
    """As with the LoRA beside the weights, as peft itself has it, and as with weights that peft merged."""
    learner = tuned(name, targets)
    beside, base = answer(learner.ema.like(samples=False)), answer(learner.reference)
    actual = answer(learner.ema)
    assert torch.allclose(actual, beside, atol=1e-5) and not torch.allclose(actual, base, atol=1e-3)
    other = copy.deepcopy(learner.ema.like(samples=False))
    for layer in other.adapters._layers:
        layer.merge(adapter_names=["ema"])
    assert torch.allclose(answer(other), beside, atol=1e-5)
    assert torch.equal(answer(learner.reference), base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_gpu_writes_unseen(monkeypatch, dtype):
    """On CUDA torch's operations on lists leave versions as they are, by which a changed LoRA is known."""
    write_unseen(monkeypatch)
    learner = tuned(dtype=dtype)
    for _ in range(3):
        before = answer(learner.ema)
        learn(learner)
        after = answer(learner.ema)
        learner.ema.adapters._merged.clear()
        assert not torch.equal(after, before) and torch.equal(after, answer(learner.ema))


@pytest.mark.parametrize(("name", "targets"), CASES[:2])
def test_no_more_products_than_without_a_lora(name, targets):
    learner = tuned(name, targets)
    answer(learner.ema)
    without, beside = products(learner.reference), products(learner.ema.like(samples=False))
    assert products(learner.ema) == without < beside


def test_nobody_wrote_the_weights():
    """Not one bit, nor are others found in the network between calls or after one that failed."""
    learner = tuned()
    before = weights(learner)

    def unchanged():
        now = weights(learner)
        return all(
            now[name][0] is weight and now[name][1] == place and torch.equal(now[name][2], value)
            for name, (weight, place, value) in before.items()
        )

    answer(learner.ema)
    assert unchanged()
    handle = learner.ema.net.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer(learner.ema)
    handle.remove()
    learn(learner)
    answer(learner.ema)
    assert unchanged()


def test_a_changed_lora_is_followed_in_place():
    """After training, loading and by whatever writes it; also where only a graph's key is asked for."""
    learner = tuned()
    answer(learner.ema)
    merged = learner.ema.adapters._merged["ema"]
    places = merged.key
    saved = copy.deepcopy(learner.weights())
    learn(learner)
    assert torch.allclose(answer(learner.ema), answer(learner.ema.like(samples=False)), atol=1e-5)
    learner.load_weights(saved)
    assert torch.allclose(answer(learner.ema), answer(learner.ema.like(samples=False)), atol=1e-5)
    with torch.no_grad():
        key = learner.ema.graph_key
        before = [weight.clone() for _, _, weight in merged._places]
        change(learner, seed=3)
        assert learner.ema.graph_key == key and merged.key == places
    assert not any(torch.equal(weight, old) for (_, _, weight), old in zip(merged._places, before, strict=True))
    assert learner.ema.like(samples=False).graph_key != key


def test_nothing_is_made_again_for_the_same_lora(monkeypatch):
    learner, made = tuned(), []
    answer(learner.ema)
    merged = learner.ema.adapters._merged["ema"]
    monkeypatch.setattr(merged, "_make", lambda: made.append(1))
    answer(learner.ema)
    answer(learner.reference)
    answer(learner.ema)
    assert not made
    change(learner)
    answer(learner.ema)
    assert made == [1]


def test_training_calls_the_lora_itself():
    """Gradients go into A and B; what DDPO compares with what it drew is drawn with them, too."""
    learner = tuned()
    x = torch.randn(1, *learner.ema.facts.shape)
    inputs = x, torch.tensor([0.5]), torch.tensor([0])
    for model in (learner.ema, learner.sampled, learner.averaged, learner.model):
        assert model.samples is (model is learner.ema)
    model = learner.model.like(samples=True)
    with torch.no_grad():
        model(*inputs)
    model(*inputs).sum().backward()
    gradients = {name: weight.grad for name, weight in model.net.named_parameters() if weight.grad is not None}
    assert (
        gradients
        and all(".tuned." in name for name in gradients)
        and any(bool(grad.any()) for grad in gradients.values())
    )


def test_sums_that_lose_the_lora_are_not_called(caplog):
    """In 16 bits a small change of a weight is rounded away: A and B are called in 16 bits then, not the sum."""
    caplog.set_level(logging.INFO, "pgraft_fast")
    learner = tuned(dtype=torch.bfloat16, size=0.05)
    for seed in (2, 5):
        change(learner, 0.05, seed)
        beside, actual = answer(learner.ema.like(samples=False)), answer(learner.ema)
        # Guidance takes the network's own rounding times 3.
        assert float((actual - beside).norm() / beside.norm()) < 0.1
        merged, lost = learner.ema.adapters._merged["ema"], []
        assert merged.on and {weight.dtype for _, _, weight in merged._places} == {torch.bfloat16}
        called = iter(weight.float() for _, _, weight in merged._places)
        for layer in learner.ema.adapters._layers:
            base, wanted = layer.get_base_layer().weight.float(), layer.get_delta_weight("ema")
            a, b = next(called), next(called)
            assert float((b @ a - wanted).norm() / wanted.norm()) < 0.01
            lost.append(float(((base + wanted).bfloat16().float() - base - wanted).norm() / wanted.norm()))
        assert min(lost) > 0.05
        assert all(layer.lora_A["ema"].weight.dtype is torch.float32 for layer in learner.ema.adapters._layers)
    assert caplog.text.count("of the LoRA would be lost") == 1


def test_a_lora_that_16_bits_hold_is_added():
    learner = tuned(dtype=torch.bfloat16, size=0.0)
    answer(learner.ema)
    assert not learner.ema.adapters._merged["ema"].on
    assert torch.equal(answer(learner.ema), answer(learner.reference))


class Quantised(nn.Parameter):
    """As packed weights are: of a class of their own."""


def quantise(learner):
    base = learner.ema.adapters._layers[-1].get_base_layer()
    base._parameters["weight"] = Quantised(base.weight.data, requires_grad=False)


def offload(learner):
    """As accelerate does, a network as a whole."""
    learner.ema.net._hf_hook = object()


def offload_groups(learner):
    """As diffusers does."""
    registry = HookRegistry.check_if_exists_or_initialize(learner.ema.adapters._layers[0])
    registry.register_hook(ModelHook(), "brings weights in")


def test_a_registry_without_hooks_is_no_reason():
    """Of diffusers' `cache_context`, in every call of the pipelines of today."""
    learner = tuned()
    HookRegistry.check_if_exists_or_initialize(learner.ema.net)
    answer(learner.ema)
    assert learner.ema.adapters._merged["ema"].key


@pytest.mark.parametrize("spoil", [quantise, offload, offload_groups])
def test_weights_that_cannot_be_added_to(spoil):
    learner = tuned()
    spoil(learner)
    assert torch.equal(answer(learner.ema), answer(learner.ema.like(samples=False)))
    assert learner.ema.adapters._merged["ema"].key == ()


def test_a_copy_larger_than_a_quarter_of_the_free_memory_is_not_made(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "pgraft_fast")
    for parts, on in ((3.9, False), (4.1, True)):
        learner = tuned()
        free = parts * sum(layer.get_base_layer().weight.nbytes for layer in learner.ema.adapters._layers)
        monkeypatch.setattr(pgraft_fast.pipelines.merged, "free_memory", lambda device, free=free: free)
        assert torch.allclose(answer(learner.ema), answer(learner.ema.like(samples=False)), atol=1e-5)
        assert bool(learner.ema.adapters._merged["ema"].key) is on
    assert caplog.text.count("memory is scarce") == 1


def test_made_in_inference_mode_and_followed_outside():
    learner = tuned()
    with torch.inference_mode():
        answer(learner.ema)
    change(learner, seed=9)
    assert torch.allclose(answer(learner.ema), answer(learner.ema.like(samples=False)), atol=1e-5)


def test_full_memory_leaves_the_lora_beside(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "pgraft_fast")
    learner = tuned()

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", full)
        actual = answer(learner.ema)
    assert torch.equal(actual, answer(learner.ema.like(samples=False))) and "memory is scarce" in caplog.text
    change(learner, seed=4)
    assert torch.equal(answer(learner.ema), answer(learner.ema.like(samples=False)))


def test_copies_are_on_their_own():
    learner = tuned()
    wanted = answer(learner.ema)
    other = copy.deepcopy(learner.ema)
    change(learner, seed=7)
    assert not torch.equal(answer(learner.ema), wanted) and torch.equal(answer(other), wanted)


def test_twins_with_other_linear_layers():
    learner = tuned()
    run = Execution("eager", torch.device("cpu"))
    run._twins = True
    before = weights(learner)
    for _ in range(2):
        for model in (learner.ema, learner.reference, learner.sampled):
            assert torch.allclose(answer(run.of(model)), answer(model), atol=1e-5)
        change(learner, seed=8)
    assert all(torch.equal(weight, value) for weight, _, value in before.values())
