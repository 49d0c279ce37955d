"""Training of weights of 16 bits: float32 masters move as float32 weights do; in float16 the loss is scaled."""

import pytest
import torch
from denoisers import denoiser, learn
from pipelines import build
from repeats import repeats

from pgraft_fast.errors import PgraftError
from pgraft_fast.finetune import TrainSettings
from pgraft_fast.finetune.learner import OptimizerSteps
from pgraft_fast.pipelines.learners import FullLearner, LoraLearner
from pgraft_fast.pipelines.loras import Lora

SETTINGS = TrainSettings(steps=10, batch_size=8, learning_rate=1e-5, ema=0.5)
HALF = (torch.bfloat16, torch.float16)


def learner_of(dtype, rank=0, settings=SETTINGS):
    pipe = build("sd")
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            # Weights that all of the dtypes hold.
            weight.copy_(weight.to(torch.bfloat16).to(torch.float16))
    model = denoiser(pipe.to(dtype))
    return LoraLearner(model, settings, Lora(rank=rank), seed=0) if rank else FullLearner(model, settings)


def flat(tensors):
    return torch.cat([value.detach().flatten().float() for value in tensors.values()])


def change(learner):
    """What a training does to the weights, as they are trained."""
    before = flat(learner.weights()["model"])
    learn(learner)
    return flat(learner.weights()["model"]) - before


@pytest.mark.parametrize(
    ("dtype", "cosine", "rank"),
    [
        (torch.bfloat16, 0.99, 4),
        (torch.float16, 0.95, 0),
        *repeats((torch.bfloat16, 0.99, 0), (torch.float16, 0.95, 4)),
    ],
)
def test_the_change_is_that_of_float32(dtype, cosine, rank):
    wanted, actual = change(learner_of(torch.float32, rank)), change(learner_of(dtype, rank))
    assert torch.nn.functional.cosine_similarity(wanted, actual, dim=0) >= cosine
    assert abs(float(actual.norm() / wanted.norm()) - 1.0) < 0.02


def test_all_weights_move_where_few_would_without_masters():
    learner = learner_of(torch.bfloat16)
    control = [weight.detach().clone().requires_grad_() for weight in learner.model.parameters()]
    before = [weight.detach().clone() for weight in control]
    optimizer = torch.optim.AdamW(control, SETTINGS.learning_rate, weight_decay=0.0)
    for _ in range(SETTINGS.steps):
        for weight in control:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    pairs = zip(before, control, strict=True)
    moved = torch.cat([(old != new.detach()).flatten() for old, new in pairs]).float().mean()
    # Of a step of 1e-5 rounding leaves the smallest weights alone.
    assert moved < 0.2
    assert (change(learner) != 0).float().mean() > 0.95


@pytest.mark.parametrize("dtype", HALF)
def test_weights_are_their_masters_rounded(dtype):
    learner = learner_of(dtype)
    learn(learner)
    kept = learner.weights()
    for name, net in (("model", learner.model), ("ema", learner.ema)):
        for key, weight in net.named_parameters():
            assert kept[name][key].dtype is torch.float32 and weight.dtype is dtype
            assert torch.equal(kept[name][key].to(dtype), weight)
    assert not torch.equal(flat(kept["model"]), flat(kept["ema"]))


@pytest.mark.parametrize(
    ("dtype", "rank"),
    [(HALF[0], 0), (HALF[1], 4), *repeats((torch.float32, 0), (torch.float32, 4), (HALF[0], 4), (HALF[1], 0))],
)
def test_training_goes_on_bit_for_bit(dtype, rank):
    straight, first, second = (learner_of(dtype, rank) for _ in range(3))
    for _ in range(2):
        learn(straight)
    learn(first)
    saved = {group: {name: value.clone() for name, value in part.items()} for group, part in first.tensors().items()}
    second.load(saved, first.steps_done)
    learn(second)
    wanted, actual = straight.tensors(), second.tensors()
    assert wanted.keys() == actual.keys() and ("scaling" in wanted) is (dtype is torch.float16)
    for group, part in wanted.items():
        assert all(torch.equal(value, actual[group][name]) for name, value in part.items())


def test_a_scale_that_overflows_is_lowered_and_the_step_is_made():
    learner, calls = learner_of(torch.float16, rank=4), []
    learner._scaler.load_state_dict({**learner._scaler.state_dict(), "scale": 2.0**20})
    # A gradient of 1: 2^20 is beyond float16, 2^15 is not.
    weight = next(weight for name, weight in learner.model.named_parameters() if "lora_B" in name)

    def accumulate():
        calls.append(learner._scaler.get_scale())
        learner.begin()
        loss = weight.to(torch.float16).sum()
        learner.backward(loss)
        return loss.detach()

    steps, before = OptimizerSteps(learner), weight.detach().clone()
    steps.step(accumulate)
    assert calls == [2.0**power for power in (20, 19, 18, 17, 16, 15)]
    assert steps.rejected == 0 and learner.steps_done == 1 and not torch.equal(before, weight)


def test_what_is_never_finite_ends_the_training():
    learner, calls = learner_of(torch.float16, rank=4), []
    weight = next(weight for name, weight in learner.model.named_parameters() if "lora_B" in name)

    def accumulate():
        calls.append(1)
        learner.begin()
        learner.backward(weight.sum() * float("nan"))
        return torch.zeros(())

    steps, before = OptimizerSteps(learner), weight.detach().clone()
    with pytest.raises(PgraftError, match="not finite 3 times in a row"):
        for _ in range(3):
            steps.step(accumulate)
    assert torch.equal(before, weight) and len(calls) < 25


def test_small_gradients_of_float16_are_no_zeros():
    """Control: without a scale they are."""
    learner = learner_of(torch.float16, rank=4)
    weight = next(weight for name, weight in learner.model.named_parameters() if "lora_B" in name)

    def small():
        # Its gradient passes through float16 as 1e-8.
        return 1e-8 * weight.to(torch.float16).float().sum()

    assert not torch.autograd.grad(small(), weight)[0].any()
    learner.begin()
    learner.backward(small())
    learner.step()
    assert bool((learner.optimizer.state[weight]["exp_avg"] != 0).all())
