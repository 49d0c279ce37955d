"""DDPO: gradients against autograd and against a known one, clipping, what is trained on and the cost."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError, PgraftError
from pgraft_fast.finetune import Learner, Ledger, TrainSettings
from pgraft_fast.finetune.ddpo import PromptStatistics, advantages, policy_loss, train_ddpo
from pgraft_fast.finetune.ddpo_settings import DdpoSettings
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.sampling import Guided
from pgraft_fast.sampling.recorded import record

COSINE = Schedule.cosine()
SCORE = DdpoSettings(variant="score")


class Net(nn.Module):
    """An MLP on 3 elements; conditions are numbers. rows: seen so far."""

    def __init__(self, seed=0, dtype=torch.float32, last=1.0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)).to(dtype)
        with torch.no_grad():
            self.layers[2].weight.mul_(last)
            self.layers[2].bias.mul_(last)
        self.rows = 0

    def forward(self, x, t, condition=None):
        self.rows += x.shape[0]
        label = torch.zeros_like(t) if condition is None else condition.to(t.dtype)
        return self.layers(torch.cat((x, t[:, None], label[:, None]), dim=1))


class WithGuidance:
    def __init__(self, net, scale=2.5):
        self.net, self.scale = net, scale

    def __call__(self, x, t, condition):
        return Guided(self.net(x, t, condition), self.net(x, t, torch.zeros_like(condition)), self.scale)


class Catch:
    """A learner that keeps the gradients of each step and changes nothing."""

    def __init__(self, model, sampled=None):
        self.model, self.sampled = model, model if sampled is None else sampled
        self.steps_done, self.gradients, self.overflows = 0, [], False

    def begin(self):
        self.model.zero_grad(set_to_none=True)

    def backward(self, loss):
        loss.backward()

    def step(self, follow=True):
        gradient = torch.cat([p.grad.flatten() for p in self.model.parameters()])
        self.gradients.append(gradient)
        return bool(gradient.isfinite().all()), gradient.norm()


def draw(model, n=6, steps=5, **update):
    arguments = {"shape": (3,), "steps": steps, "parameterization": "v", "seed": 1, "sample_ids": torch.arange(n) + 7}
    return record(model, COSINE, **(arguments | update))


def plain_gradient(net, old, recorded, advantage, condition, settings, scale):
    """Of the loss over all steps with noise, by autograd on the textbook posterior of ddpm in float64."""
    net, old = (copy_in_double(model) for model in (net, old))

    def log_prob(model, step):
        x_t, x_s = recorded.states[step].double(), recorded.states[step + 1].double()
        t, s = float(recorded.times[step]), float(recorded.times[step + 1])
        (alpha_t, sigma_t), (alpha_s, sigma_s) = COSINE.alpha_sigma(t), COSINE.alpha_sigma(s)
        times = torch.full((x_t.shape[0],), t, dtype=torch.float64)
        v = model(x_t, times, condition)
        if scale is not None:
            null = model(x_t, times, torch.zeros_like(condition))
            v = null + scale * (v - null)
        x_0 = alpha_t * x_t - sigma_t * v
        ratio = alpha_t / alpha_s
        forward = sigma_t**2 - ratio**2 * sigma_s**2
        mean = ratio * sigma_s**2 / sigma_t**2 * x_t + alpha_s * forward / sigma_t**2 * x_0
        law = torch.distributions.Normal(mean, (forward * sigma_s**2 / sigma_t**2).sqrt())
        density = law.log_prob(x_s)
        return density.mean(1) if settings.log_prob == "mean" else density.sum(1)

    losses = []
    for step in range(len(recorded.times) - 1):
        now = log_prob(net, step)
        with torch.no_grad():
            before = log_prob(old, step)
        if settings.variant == "score":
            losses.append(-advantage * now)
            continue
        ratio = (now - before).exp()
        low, high = 1 - settings.clip_range, 1 + settings.clip_range
        clipped = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
        losses.append(torch.where(clipped, torch.zeros_like(ratio), -advantage * ratio))
    torch.stack(losses).mean().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def copy_in_double(model):
    copied = Net(dtype=torch.float64)
    copied.load_state_dict(model.state_dict())
    return copied


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("scale", [None, 2.5])
@pytest.mark.parametrize("log_prob, clip_range", [("mean", 0.02), ("sum", 0.1)])
@pytest.mark.parametrize("variant", ["importance", "score"])
def test_gradient_against_autograd(variant, log_prob, clip_range, scale, dtype, tolerance):
    """The model has moved since it sampled, so that some ratios are clipped."""
    old, net = Net(0, dtype), Net(0, dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    condition = torch.linspace(-1, 1, 6, dtype=dtype)
    learner = Catch(net) if scale is None else Catch(net, WithGuidance(net, scale))
    recorded = draw(old if scale is None else WithGuidance(old, scale), condition=condition, dtype=dtype)
    advantage = torch.tensor([1.5, -1.0, 0.3, -0.2, 2.0, -2.5], dtype=torch.float64)
    size = None if variant == "score" else 6
    settings = DdpoSettings(variant=variant, log_prob=log_prob, clip_range=clip_range, batch_size=size)
    report = train_ddpo(learner, recorded, advantage, condition, settings, seed=0)
    expected = plain_gradient(net, old, recorded, advantage, condition.double(), settings, scale)
    error = (learner.gradients[0].double() - expected).norm() / expected.norm()
    assert report.steps == len(learner.gradients) == 1
    assert error < tolerance
    assert report.kl > 0.0
    if variant == "importance":
        assert 0.1 < report.clipped < 0.9


def test_both_variants_agree_where_the_model_has_not_moved():
    net = Net()
    recorded, advantage = draw(net), torch.randn(6)
    gradients = []
    for settings in (SCORE, DdpoSettings(batch_size=6)):
        learner = Catch(net)
        report = train_ddpo(learner, recorded, advantage, None, settings, seed=0)
        assert report.kl < 1e-9
        assert report.clipped == (None if settings is SCORE else 0.0)
        gradients.append(learner.gradients[0])
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


class Linear(nn.Module):
    """x_0 = theta_0 + theta_1 x at t > 0.3, below a fixed linear map: samples are normal with known moments."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([-0.3, 0.5], dtype=torch.float64))

    def forward(self, x, t):
        early = (t > 0.3).to(x.dtype)[:, None]
        return early * (self.theta[0] + self.theta[1] * x) + (1.0 - early) * 0.9 * x


def exact_gradient(recorded):
    """d/d theta of E[-(x_0 - 1)^2], carrying mean and variance of the state through the steps."""
    theta = torch.tensor([-0.3, 0.5], dtype=torch.float64, requires_grad=True)
    mean, variance = torch.zeros(()), COSINE.sigma(float(recorded.times[0])) ** 2
    for row, t in zip(recorded.table.tolist(), recorded.times.tolist(), strict=True):
        p, q, a, b, _, d = row[:6]
        offset, slope = (theta[0], theta[1]) if t > 0.3 else (0.0, 0.9)
        gain = a + b * (p + q * slope)
        mean, variance = gain * mean + b * q * offset, gain**2 * variance + d**2
    (-((mean - 1.0) ** 2) - variance).backward()
    return theta.grad


def test_score_gradient_is_an_unbiased_estimate():
    parts, size = 25, 800
    net = Linear()
    recorded = record(
        net, COSINE, shape=(1,), steps=6, parameterization="x_0", sample_ids=torch.arange(parts * size), seed=2,
        batch_size=parts * size, dtype=torch.float64,
    )  # fmt: skip
    reward = -((recorded.x_0[:, 0] - 1.0) ** 2)
    exact = exact_gradient(recorded)
    for settings in (SCORE, DdpoSettings(batch_size=size)):
        learner = Catch(net)
        for index in range(parts):
            rows = slice(index * size, (index + 1) * size)
            part = replace(
                recorded, states=recorded.states[:, rows], log_prob=recorded.log_prob[:, rows],
                sample_id=recorded.sample_id[rows], x_0=recorded.x_0[rows],
            )  # fmt: skip
            train_ddpo(learner, part, reward[rows] + 1.0, None, settings, seed=0)
        # The loss is minus the mean over the 5 steps with noise.
        estimates = -5.0 * torch.stack(learner.gradients)
        error = estimates.std(dim=0) / parts**0.5
        assert bool((error < 0.1 * exact.abs()).all())
        assert bool(((estimates.mean(dim=0) - exact).abs() < 3.5 * error).all())


@pytest.mark.parametrize(
    "ratio, advantage, slope",
    [
        (1.0, 2.0, -2.0), (1.0, -2.0, 2.0),
        (1.1, 2.0, -2.2), (1.1, -2.0, 2.2), (0.9, 2.0, -1.8), (0.9, -2.0, 1.8),
        (1.5, 2.0, 0.0), (1.5, -2.0, 3.0), (0.5, 2.0, -1.0), (0.5, -2.0, 0.0),
    ],
)  # fmt: skip
def test_clipping(ratio, advantage, slope):
    """The gradient in log p is -advantage ratio, or nothing where a further step would only leave the range."""
    double = {"dtype": torch.float64}
    old = torch.tensor([-3.0], **double)
    log_prob = (old + np.log(ratio)).requires_grad_()
    loss = policy_loss(log_prob, old, torch.tensor([advantage], **double), DdpoSettings(clip_range=0.2))
    loss.sum().backward()
    assert float(log_prob.grad) == pytest.approx(slope, abs=1e-12)
    bounded = np.clip(ratio, 0.8, 1.2)
    assert float(loss.detach()) == pytest.approx(max(-advantage * ratio, -advantage * bounded))


def test_samples_without_advantage_cost_nothing():
    net, ledger = Net(), Ledger()
    recorded = draw(net, n=8)
    net.rows = 0
    advantage = torch.tensor([0.0, 1.0, 0.0, -1.0, 0.5, 0.0, 0.0, 2.0])
    report = train_ddpo(Catch(net), recorded, advantage, None, DdpoSettings(batch_size=2), seed=0, ledger=ledger)
    assert report.steps == 2
    assert net.rows == 4 * 4
    assert ledger.model_calls == 3 * 4 * 4
    nothing = train_ddpo(Catch(net), recorded, torch.zeros(8), None, SCORE, seed=0, ledger=ledger)
    assert (nothing.steps, nothing.loss, nothing.clipped, nothing.kl) == (0, 0.0, None, None)
    assert net.rows == 16


def test_guided_rows_cost_twice():
    net, ledger, condition = Net(), Ledger(), torch.ones(4)
    model = WithGuidance(net)
    recorded = draw(model, n=4, condition=condition)
    train_ddpo(Catch(net, model), recorded, torch.ones(4), condition, SCORE, seed=0, ledger=ledger)
    assert recorded.model_calls == 2 * 4 * 5
    assert ledger.model_calls == 2 * 3 * 4 * 4


def test_all_pairs_once_a_pass_whatever_the_order_of_samples():
    """Every epoch sees count steps of every sample; a sample's draws depend on its id alone."""
    net = Net()
    recorded = draw(net, n=5, steps=11)
    settings = DdpoSettings(timestep_fraction=0.5, inner_epochs=3, batch_size=2)
    seen = []

    def spied(model, which):
        def call(x, t):
            for row, time in zip(x, t, strict=True):
                step = int((which.times.float() - time).abs().argmin())
                sample = int((which.states[step] - row).abs().sum(1).argmin())
                seen.append((int(which.sample_id[sample]), step))
            return model(x, t)

        return call

    order = torch.tensor([3, 1, 4, 0, 2])
    mixed = replace(
        recorded, states=recorded.states[:, order], log_prob=recorded.log_prob[:, order], x_0=recorded.x_0[order],
        sample_id=recorded.sample_id[order],
    )  # fmt: skip
    passes = []
    for which in (recorded, mixed):
        seen.clear()
        learner = Catch(net, spied(net, which))
        report = train_ddpo(learner, which, torch.ones(5), None, settings, seed=0)
        assert report.steps == learner.steps_done == 9
        assert len(seen) == settings.most_rows(5, 10) == 3 * 5 * 5
        passes.append([sorted(seen[25 * epoch : 25 * epoch + 25]) for epoch in range(3)])
    assert passes[0] == passes[1]
    for epoch in passes[0]:
        assert len(set(epoch)) == 25
        assert max(step for _, step in epoch) < 10
    assert passes[0][0] != passes[0][1]


def test_parts_of_a_batch_add_up():
    net = Net()
    recorded, advantage = draw(net, n=7), torch.randn(7)
    results = []
    for size in (100, 7, 3, 1):
        learner = Catch(net)
        settings = DdpoSettings(batch_size=4, clip_range=0.1)
        report = train_ddpo(learner, recorded, advantage, None, settings, seed=0, memory=BatchSize(size))
        results.append((torch.stack(learner.gradients), report.loss))
    for gradients, loss in results[1:]:
        assert torch.allclose(gradients, results[0][0], rtol=1e-4, atol=1e-6)
        assert loss == pytest.approx(results[0][1], abs=1e-6)


def test_narrow_states_train_alike():
    net = Net()
    advantage, gradients = torch.randn(64), []
    for dtype in (None, torch.float16):
        learner = Catch(net)
        report = train_ddpo(learner, draw(net, n=64, state_dtype=dtype), advantage, None, SCORE, seed=0)
        assert report.kl < 1e-9
        gradients.append(learner.gradients[0])
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


def test_training_stops_when_told_after_one_step():
    net = Net()
    checks = []
    report = train_ddpo(
        Catch(net), draw(net), torch.ones(6), None, DdpoSettings(batch_size=1), seed=0, enough=lambda: True,
        check=lambda: checks.append(1),
    )  # fmt: skip
    assert report.steps == len(checks) == 1


def test_three_gradients_that_are_not_finite_stop_the_run():
    net = Net()
    recorded = draw(net)
    broken = replace(recorded, log_prob=recorded.log_prob * float("nan"))
    with pytest.raises(PgraftError, match="not finite 3 times in a row"):
        train_ddpo(Catch(net), broken, torch.ones(6), None, DdpoSettings(batch_size=1), seed=0)


def test_dropout_does_not_make_another_policy():
    net = Net()
    net.layers.insert(1, nn.Dropout(0.5))
    net.eval()
    recorded = draw(net)
    net.train()
    assert train_ddpo(Catch(net), recorded, torch.ones(6), None, SCORE, seed=0).kl < 1e-9


@pytest.mark.parametrize("update", [{"variant": "score"}, {"statistics": "global"}, {"inner_epochs": 2}])
def test_rounds_raise_the_reward(update):
    """At first the samples are normal around 0; the reward is -|x - 1|^2 in 3 dimensions."""
    settings = DdpoSettings(clip_range=0.1, **update)
    learner = Learner(Net(last=0.0), TrainSettings(learning_rate=5e-2, ema=0.0))
    statistics, history = PromptStatistics(settings.buffer_size), []
    for number in range(10):
        recorded = draw(learner.sampled, n=64, steps=6, sample_ids=torch.arange(64) + 64 * number)
        rewards = -(recorded.x_0 - 1.0).square().sum(1).view(2, 32)
        history.append(float(rewards.mean()))
        weight = advantages(rewards, torch.tensor([0, 1]), statistics, settings)
        report = train_ddpo(learner, recorded, weight.flatten(), None, settings, seed=3)
        assert report.rejected == 0
    assert history[0] < -3.0
    assert history[-1] > -1.5
    assert learner.steps_done == 10 * settings.inner_epochs * (1 if settings.variant == "score" else 2)


def test_a_saved_learner_goes_on_bit_for_bit():
    settings = TrainSettings(learning_rate=1e-2)
    straight, first, second = (Learner(Net(), settings) for _ in range(3))
    recorded, advantage = draw(Net(), n=8), torch.randn(8)

    def go(learner):
        train_ddpo(learner, recorded, advantage, None, DdpoSettings(), seed=0)

    for learner in (straight, straight, first):
        go(learner)
    second.load(first.tensors(), first.steps_done)
    go(second)
    for name, tensors in straight.tensors().items():
        assert all(torch.equal(second.tensors()[name][key], value) for key, value in tensors.items())


def test_bad_input():
    net = Net()
    recorded = draw(net)
    with pytest.raises(InputError, match=r"advantage has shape \(5,\): \(6,\) finite"):
        train_ddpo(Catch(net), recorded, torch.ones(5), None, SCORE, seed=0)
    with pytest.raises(InputError, match="finite numbers"):
        train_ddpo(Catch(net), recorded, torch.full((6,), float("nan")), None, SCORE, seed=0)
    with pytest.raises(InputError, match="condition has 2 rows for 6"):
        train_ddpo(Catch(net), recorded, torch.ones(6), torch.ones(2), SCORE, seed=0)
    with pytest.raises(InputError, match=r"\(P, N\) and \(P,\)"):
        advantages(torch.ones(2, 3), torch.zeros(3), PromptStatistics(4), SCORE)
    with pytest.raises(InputError, match="draws no noise"):
        draw(net, solver="dpmpp_2m")
    with pytest.raises(ValidationError, match="one optimiser step a round"):
        DdpoSettings(variant="score", inner_epochs=2)
    with pytest.raises(ValidationError, match="more than buffer_size=8"):
        DdpoSettings(buffer_size=8)
    with pytest.raises(ValidationError):
        DdpoSettings(cliprange=0.1)
