"""Rounds and training on small models: what is trained, with what, and bit for bit."""

import pytest
import torch
from torch import nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import PgraftError
from pgraft_fast.finetune import (
    FinetuneSettings,
    Kept,
    Learner,
    Ledger,
    Prompts,
    SampleSettings,
    SelectSettings,
    TrainSettings,
    collect,
    train,
)
from pgraft_fast.finetune.training import _batches

FLOW = Schedule.linear_flow()


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 4))
        self.rows = 0

    def forward(self, x, t, condition=None):
        self.rows += x.shape[0]
        return self.layers(torch.cat((x, t[:, None]), dim=1)) + (0 if condition is None else condition[:, None])


def settings(**update):
    values = {
        "sample": SampleSettings(prompts=3, candidates=4, steps=5, batch_size=5),
        "select": SelectSettings(k=2),
        "train": TrainSettings(steps=6, batch_size=4, learning_rate=1e-2, cut=0.4),
    }
    return FinetuneSettings(**(values | update))


def gather(config, **update):
    arguments = {"shape": (4,), "parameterization": "velocity", "cuts": (0.0, 0.4)} | update
    return collect(Net(), FLOW, lambda x: x.sum(1), Prompts(["a", "b", "c"], torch.arange(3.0)), config, **arguments)


def test_kept_rows_are_the_best_of_their_group():
    ledger = Ledger()
    collected = gather(settings(), ledger=ledger)
    assert collected.rewards.shape == (3, 4)
    assert torch.allclose(collected.rewards.flatten(), collected.rollout.x_0.sum(1))
    for group in range(3):
        best = collected.rewards[group].topk(2).indices
        assert collected.acceptance.mask[group].nonzero().flatten().tolist() == sorted(best.tolist())
    state, clean = collected.kept(0.4, "state"), collected.kept(0.4, "clean")
    index = collected.acceptance.index
    assert torch.equal(state.x, collected.rollout.x_cut[0.4][index])
    assert torch.equal(clean.x, collected.rollout.x_0[index])
    assert state.t_cut == clean.t_cut == pytest.approx(0.4)
    assert torch.equal(state.condition, collected.condition[index])
    assert ledger.model_calls == 12 * 5


@pytest.mark.parametrize("kind", ["acceptance", "reward"])
def test_contrast_takes_the_rows_of_mixed_groups(kind):
    """Of three groups one is all accepted and one all rejected: what the rule does not tell apart teaches nothing."""
    config = settings(select=SelectSettings(rule="threshold", threshold=0.0))

    def reward(x, prompts):
        return x.sum(1) + torch.tensor([{"a": 0.0, "b": 100.0, "c": -100.0}[prompt] for prompt in prompts])

    collected = collect(Net(), FLOW, reward, Prompts(["a", "b", "c"], torch.arange(3.0)), config, shape=(4,),
                        parameterization="velocity", cuts=(0.0, 0.4))  # fmt: skip
    (mixed,) = (
        ((collected.acceptance.group_count > 0) & (collected.acceptance.group_count < 4)).nonzero().flatten().tolist()
    )
    kept = collected.kept(0.4, "contrast", strength=2.0, advantage=kind)
    rows = slice(4 * mixed, 4 * mixed + 4)
    assert torch.equal(kept.x, collected.rollout.x_cut[0.4][rows]) and kept.t_cut == collected.rollout.t_cut[0.4]
    assert torch.equal(kept.sample_id, collected.rollout.sample_id[rows])
    assert torch.equal(kept.condition, collected.condition[rows])
    accepted = collected.acceptance.mask[mixed]
    share = float(accepted.float().mean())
    if kind == "acceptance":
        assert kept.advantage.tolist() == pytest.approx([4 * (1 - share) * (1 if flag else -1) for flag in accepted])
        assert kept.rows == 2 * min(int(accepted.sum()), 4 - int(accepted.sum()))
    else:
        rest = collected.rewards[mixed] - collected.rewards[mixed].mean()
        assert torch.allclose(kept.advantage / kept.advantage.abs().max(), rest / rest.abs().max(), atol=1e-5)
        assert kept.rows == 4
    # Cut 0: final samples.
    assert torch.equal(collected.kept(0.0, "contrast", advantage=kind).x, collected.rollout.x_0[rows])


def test_prompts_come_in_turn_and_depend_on_the_round_alone():
    prompts = Prompts(list("abcdefg"))
    rounds = [prompts.of_round(3, number, 5) for number in range(7)]
    counts = torch.bincount(torch.cat(rounds), minlength=7)
    assert counts.tolist() == [5] * 7
    assert torch.equal(prompts.of_round(3, 4, 5), rounds[4])
    assert not torch.equal(prompts.of_round(4, 4, 5), rounds[4])
    assert sorted(torch.cat(rounds)[:7].tolist()) == list(range(7))


def test_sample_ids_do_not_repeat_over_rounds():
    ids = [gather(settings(), round_=number).rollout.sample_id for number in range(3)]
    assert torch.cat(ids).tolist() == list(range(36))


def test_binary_rule_drops_copies():
    config = settings(select=SelectSettings(rule="binary", threshold=-100.0))

    class Constant(Net):
        def forward(self, x, t, condition=None):
            return torch.zeros_like(x)

    collected = collect(
        Constant(), FLOW, lambda x: x.sum(1), Prompts(["a"]), config, shape=(4,), parameterization="x_0", cuts=(0.4,)
    )
    assert collected.acceptance.group_count.tolist() == [1, 0, 0]


def rows_of(ids, **more):
    return Kept(torch.zeros(ids.numel(), 1), ids, None, 0.0, **more)


def test_batches_read_all_rows_before_any_again():
    ids = torch.arange(10) + 50
    batches = list(_batches(rows_of(ids), seed=1, size=4, steps=5))
    rows, key, epochs = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(key, ids[rows])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert epochs.tolist() == [0] * 10 + [1] * 10
    assert rows[:10].tolist() != rows[10:].tolist()
    rows, _, epochs = next(_batches(rows_of(ids[:2]), seed=1, size=5, steps=1))
    assert sorted(rows[:4].tolist()) == [0, 0, 1, 1]
    assert epochs.tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(("low_noise", "cut"), [(1.0, 0.4), (3.0, 0.4), (3.0, 0.0), (100.0, 0.4), (0.01, 0.0)])
def test_low_noise_is_read_more_often(low_noise, cut):
    """Times of a density ~ (1 - t)^(low_noise - 1) above the cut: a share (1 - u)^low_noise of them lies above u."""
    times = []

    class Watched(Net):
        def forward(self, x, t, condition=None):
            times.append(t)
            return super().forward(x, t, condition)

    config = settings(train=TrainSettings(steps=400, batch_size=4, learning_rate=1e-9, cut=cut, low_noise=low_noise))
    collected = gather(config)
    train(Learner(Watched(), config.train), collected.kept(cut, "state"), FLOW, parameterization="velocity", seed=0)
    t = torch.cat(times).double()
    assert t.numel() == 1600 and float(t.min()) >= cut and float(t.max()) <= 1.0 and bool(t.isfinite().all())
    for u in (0.1, 0.3, 0.7):
        above = float((t > cut + (1.0 - cut) * u).double().mean())
        assert above == pytest.approx((1.0 - u) ** low_noise, abs=0.03)


def test_only_kept_rows_reach_the_model():
    learner, kept, ledger = Learner(Net(), settings().train), gather(settings()).kept(0.4, "state"), Ledger()
    seen = []
    learner.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[0]))
    report = train(learner, kept, FLOW, parameterization="velocity", seed=0, ledger=ledger)
    assert seen == [4] * 6
    assert report.steps == 6
    assert report.rejected == 0
    assert ledger.model_calls == 3 * 4 * 6


def test_training_is_reproducible_and_the_reference_untouched():
    kept, reference = gather(settings()).kept(0.4, "state"), Net()
    before = [p.clone() for p in reference.parameters()]
    results = []
    for _ in range(2):
        learner = Learner(reference, settings().train)
        torch.manual_seed(len(results))  # Global generators play no part.
        train(learner, kept, FLOW, parameterization="velocity", seed=0)
        results.append(learner.tensors())
    for name, tensors in results[0].items():
        assert all(torch.equal(results[1][name][key], value) for key, value in tensors.items())
    assert all(torch.equal(a, b) for a, b in zip(before, reference.parameters(), strict=True))
    assert not torch.equal(results[0]["ema"]["layers.0.weight"], before[0])


def test_saved_learner_goes_on_bit_for_bit():
    kept = gather(settings()).kept(0.4, "state")
    straight, first, second = (Learner(Net(), settings().train) for _ in range(3))
    for learner in (straight, straight, first):
        train(learner, kept, FLOW, parameterization="velocity", seed=0)
    second.load(first.tensors(), first.steps_done)
    train(second, kept, FLOW, parameterization="velocity", seed=0)
    for name, tensors in straight.tensors().items():
        assert all(torch.equal(second.tensors()[name][key], value) for key, value in tensors.items())


def test_ema():
    learner = Learner(Net(), TrainSettings(ema=0.5, learning_rate=0.1))
    weights = [learner.model.layers[0].weight.clone()]
    for _ in range(2):
        learner.update(learner.model(torch.ones(1, 4), torch.ones(1)).sum())
        weights.append(learner.model.layers[0].weight.clone())
    expected = 0.5 * (0.5 * weights[0] + 0.5 * weights[1]) + 0.5 * weights[2]
    assert torch.allclose(learner.ema.layers[0].weight, expected, atol=1e-6)
    plain = Learner(Net(), TrainSettings(ema=0.0))
    plain.update(plain.model(torch.ones(1, 4), torch.ones(1)).sum())
    assert torch.equal(plain.ema.layers[0].weight, plain.model.layers[0].weight)


def test_a_gradient_that_is_not_finite_changes_nothing():
    learner = Learner(Net(), settings().train)
    done, _ = learner.update(learner.model(torch.ones(1, 4), torch.ones(1)).sum())
    assert done
    before = {k: v.clone() for group in learner.tensors().values() for k, v in group.items()}
    done, _ = learner.update(learner.model(torch.ones(1, 4), torch.ones(1)).sum() * float("nan"))
    assert not done
    after = {k: v for group in learner.tensors().values() for k, v in group.items()}
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_three_such_gradients_stop_the_run():
    kept = Kept(torch.full((4, 4), float("nan")), torch.arange(4), None, 0.4)
    with pytest.raises(PgraftError, match="not finite 3 times in a row"):
        train(Learner(Net(), settings().train), kept, FLOW, parameterization="velocity", seed=0)


def test_training_stops_when_told():
    kept = gather(settings()).kept(0.4, "state")
    calls = iter(range(100))
    report = train(
        Learner(Net(), settings().train),
        kept,
        FLOW,
        parameterization="velocity",
        seed=0,
        enough=lambda: next(calls) >= 2,
    )
    assert report.steps == 3
