"""DiffusionNFT: its loss by hand, what it costs, that the old policy follows, and that it raises a reward."""

import pytest
import torch
from small_nets import Mlp

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import (
    FinetuneSettings,
    Learner,
    Ledger,
    Prompts,
    SampleSettings,
    SelectSettings,
    Trainer,
    TrainSettings,
)
from pgraft_fast.finetune.memory import BatchSize
from pgraft_fast.finetune.nft import nft_advantages, nft_loss, train_nft
from pgraft_fast.finetune.nft_settings import NftSettings

FLOW = Schedule.linear_flow()


def learned(settings, advantage=None, memory=None, steps=5, **more):
    learner, ledger = Learner(Mlp(), TrainSettings(learning_rate=1e-2)), Ledger()
    torch.manual_seed(1)
    x_0, ids = torch.randn(6, 4), torch.arange(6) + 10
    advantage = torch.tensor([1.0, -1.0, 0.5, 0.0, -2.0, 9.0]) if advantage is None else advantage
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
    report = train_nft(
        learner, FLOW, x_0, ids, advantage, None, times, settings, parameterization="velocity", seed=0, ledger=ledger,
        memory=memory, **more,
    )  # fmt: skip
    return learner, ledger, report


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_loss_by_hand(beta):
    """In the velocity of a linear flow, element by element: x_0 = x_t - t v."""
    torch.manual_seed(0)
    settings = NftSettings(beta=beta, advantage_clip=2.0)
    out, old, x_0, x_t = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    t, advantage = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([-5.0, 0.5, 2.0], dtype=torch.float64)
    loss = nft_loss(out, old, x_0, lambda v: x_t - t[:, None, None] * v, advantage, settings)
    for row, share in enumerate((0.0, 0.625, 1.0)):
        total = 0.0
        for part, sign in ((share, 1.0), (1.0 - share, -1.0)):
            v = old[row] + sign * beta * (out[row] - old[row])
            rest = x_t[row] - t[row] * v - x_0[row]
            total += part / beta * float((rest**2).mean() / rest.abs().mean())
        assert float(loss[row]) == pytest.approx(2.0 * total, rel=1e-6)


def test_advantages():
    rewards = torch.tensor([[1.0, 3.0, torch.nan], [2.0, 2.0, 8.0]])
    spread = torch.tensor([1.0, 3.0, 2.0, 2.0, 8.0]).std(correction=0)
    expected = torch.tensor([[-1.0, 1.0, 0.0], [-2.0, -2.0, 4.0]]) / (spread + 1e-4)
    assert torch.allclose(nft_advantages(rewards), expected)
    assert torch.equal(nft_advantages(torch.full((2, 3), 0.7)), torch.zeros(2, 3))


def test_every_sample_trains_its_steps_and_calls_are_counted():
    learner, ledger, report = learned(NftSettings(timestep_fraction=0.8))
    assert report.steps == 1 and ledger.model_calls == 6 * 4 * 5
    assert learned(NftSettings(kl=0.0))[1].model_calls == 6 * 4 * 4  # int(0.99 * 5) steps, no reference
    assert learned(NftSettings(batch_size=2, inner_epochs=3))[2].steps == 9
    assert learner.steps_done == 1


def test_the_old_policy_follows_after_the_round():
    before = Mlp().state_dict()
    learner, _, _ = learned(NftSettings(decay_rate=0.1, batch_size=3))
    # After two steps it keeps a fifth of itself.
    for name, raw in learner.model.state_dict().items():
        assert torch.allclose(learner.ema.state_dict()[name], 0.2 * before[name] + 0.8 * raw, atol=1e-6)
        assert not torch.equal(raw, before[name])


def test_no_difference_teaches_nothing():
    learner, ledger, report = learned(NftSettings(), advantage=torch.zeros(6))
    assert report.steps == ledger.model_calls == 0
    assert all(torch.equal(a, b) for a, b in zip(learner.model.parameters(), Mlp().parameters(), strict=True))


def test_parts_of_a_batch_add_up():
    whole, parts = learned(NftSettings())[0], learned(NftSettings(), memory=BatchSize(5, "training"))[0]
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_it_ends_after_one_step_when_told():
    assert learned(NftSettings(batch_size=1), enough=lambda: True)[2].steps == 1


def test_bad_input():
    with pytest.raises(InputError, match=r"advantage has shape \(5,\): \(6,\) finite"):
        learned(NftSettings(), advantage=torch.zeros(5))
    with pytest.raises(InputError, match="finite numbers"):
        learned(NftSettings(), advantage=torch.full((6,), torch.nan))


def run_of(folder, rounds=12, reward=lambda x: x.sum(1)):
    settings = FinetuneSettings(
        method="nft", sample=SampleSettings(prompts=4, candidates=8, steps=5), select=SelectSettings(k=2),
        train=TrainSettings(rounds=rounds, learning_rate=1e-2), nft=NftSettings(batch_size=8, beta=0.5),
    )  # fmt: skip
    run = Trainer(Mlp(), FLOW, reward, settings, shape=(4,), parameterization="velocity", prompts=Prompts(["a", "b"]),
                  run=folder, log=lambda text: None)  # fmt: skip
    run.run_rounds()
    return run


def test_rounds_raise_the_reward_and_a_reward_without_meaning_does_not(tmp_path):
    run = run_of(tmp_path / "a")
    rewards = [entry["reward"] for entry in run.history]
    assert rewards[-1] > rewards[0] + 0.5
    assert run.ledger.model_calls == 12 * run.calls_of_a_round() == 12 * (32 * 5 + 32 * 4 * 5)
    same = run_of(tmp_path / "b", rounds=3, reward=lambda x: torch.ones(x.shape[0]))
    assert all(torch.equal(a, b) for a, b in zip(same.tuned.parameters(), Mlp().parameters(), strict=True))


def test_resumed_run_is_bit_identical(tmp_path):
    straight = run_of(tmp_path / "straight", 3)
    for rounds in (1, 2, 3):
        resumed = run_of(tmp_path / "parts", rounds)
    assert [e["reward"] for e in straight.history] == [e["reward"] for e in resumed.history]
    for a, b in zip(straight.tuned.parameters(), resumed.tuned.parameters(), strict=True):
        assert torch.equal(a, b)
