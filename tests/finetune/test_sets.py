"""Samples that are sets of different sizes: what is no element counts nowhere. And copies over groups and rounds."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import (
    FinetuneSettings,
    Learner,
    Prompts,
    SampleSettings,
    SelectSettings,
    Trainer,
    TrainSettings,
    collect,
    pgraft_loss,
    train,
)
from pgraft_fast.finetune.nft import nft_loss
from pgraft_fast.finetune.nft_settings import NftSettings
from pgraft_fast.selection import accept

COSINE, WIDTH = Schedule.cosine(), 3


class Net(nn.Module):
    """Each row by itself; rows that are no elements come out as `beside`."""

    def __init__(self, beside=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.beside = nn.Linear(WIDTH + 1, WIDTH), beside

    def forward(self, x, t, count=None):
        out = self.layer(torch.cat((x, t[:, None, None].expand(-1, x.shape[1], 1)), dim=2))
        return out if count is None else out.where(elements(count, x.shape[1])[:, :, None], self.beside)


def elements(count, n=5):
    return torch.arange(n) < count[:, None]


@pytest.mark.parametrize("objective", ["state", "clean", "contrast"])
def test_the_loss_is_that_of_each_set_alone(objective):
    count, t = torch.tensor([2, 5, 1]), torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64)
    torch.manual_seed(1)
    x, noise = torch.randn(2, 3, 5, WIDTH)
    more = {"frozen": Net(), "advantage": torch.tensor([1.0, -2.0, 0.5])} if objective == "contrast" else {}

    def loss(rows, n, net, **options):
        own = {name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in more.items()}
        return pgraft_loss(
            net, COSINE, x[rows, :n], cut=0.25, objective=objective, parameterization="v", t=t[rows],
            noise=noise[rows, :n], reduction="none", **own, **options,
        )  # fmt: skip

    net, alone = Net(), Net()
    got = loss(slice(0, 3), 5, net, elements=elements(count))
    wanted = torch.cat([loss(slice(row, row + 1), n, alone) for row, n in enumerate(count.tolist())])
    assert torch.allclose(got, wanted, rtol=1e-6)
    got.sum().backward()
    wanted.sum().backward()
    assert torch.allclose(net.layer.weight.grad, alone.layer.weight.grad, rtol=1e-5)


def test_whatever_a_network_says_of_other_rows():
    count, noise = torch.tensor([2, 5, 1]), torch.randn(2, 3, 5, WIDTH)
    nets = Net(), Net(beside=float("nan"))
    for net in nets:
        pgraft_loss(
            net, COSINE, noise[0], cut=0.25, parameterization="v", t=torch.tensor([0.5, 0.7, 0.9]), noise=noise[1],
            condition=count, elements=elements(count),
        ).backward()  # fmt: skip
    assert torch.equal(nets[0].layer.weight.grad, nets[1].layer.weight.grad)


def test_nft_of_each_set_alone():
    count = torch.tensor([2, 5, 1])
    torch.manual_seed(2)
    out, old, x_0 = torch.randn(3, 3, 5, WIDTH)
    x_0, advantage = x_0.where(elements(count)[:, :, None], 0.0), torch.tensor([1.0, -0.5, 0.0])
    got = nft_loss(out, old, x_0, lambda answer: 2.0 * answer, advantage, NftSettings(), elements(count))
    for row, n in enumerate(count.tolist()):
        alone = [value[row : row + 1, :n] for value in (out, old, x_0)]
        wanted = nft_loss(*alone, lambda answer: 2.0 * answer, advantage[row : row + 1], NftSettings())
        assert float(got[row]) == pytest.approx(float(wanted), rel=1e-5)


def settings(**select):
    return FinetuneSettings(
        sample=SampleSettings(prompts=3, candidates=4, steps=3),
        select=SelectSettings(rule="binary", threshold=-100.0, **select),
        train=TrainSettings(steps=2, batch_size=4, cut=0.25, rounds=3),
    )


def prompts(**more):
    count = torch.tensor([2, 5, 1])
    return Prompts(["2", "5", "1"], count, elements=elements, **more)


def drawn(config, asked, **more):
    return collect(
        Net(), COSINE, lambda x: x.flatten(1).sum(1), asked, config, shape=(5, WIDTH), parameterization="v",
        cuts=(0.25,), **more,
    )  # fmt: skip


def test_training_gets_the_elements():
    candidates = drawn(settings(), prompts())
    kept = candidates.kept(0.25, "state")
    assert torch.equal(kept.elements, elements(kept.condition))
    assert torch.equal(candidates.kept(0.25, "clean").elements, kept.elements)
    # What lies in other rows changes no weight.
    other = replace(kept, x=kept.x.where(kept.elements[:, :, None], 9.0))
    learners = [Learner(Net(), settings().train) for _ in range(2)]
    for learner, rows in zip(learners, (kept, other), strict=True):
        train(learner, rows, COSINE, parameterization="v", seed=0)
    assert torch.equal(learners[0].model.layer.weight, learners[1].model.layer.weight)
    assert not torch.equal(learners[0].model.layer.weight, Net().layer.weight)
    contrast = drawn(settings(), prompts())._contrast(0.25, 1.0, "acceptance")
    assert torch.equal(contrast.elements, elements(contrast.condition))


def same(samples, condition):
    """Of equal size."""
    return condition.clone()


@pytest.mark.parametrize("copies", ["group", "round", None])
def test_one_of_each_group(copies):
    got = drawn(settings(copies=copies), prompts(same=same))
    assert got.acceptance.group_count.tolist() == [1, 1, 1]
    assert got.acceptance.mask[:, 0].all() and torch.equal(got.copies[:, 0].sort().values, torch.tensor([1, 2, 5]))


def test_copies_of_other_groups():
    def all_the_same(samples, condition):
        return torch.zeros(len(samples), dtype=torch.int64)

    of_group, of_round = (drawn(settings(copies=name), prompts(same=all_the_same)) for name in ("group", "round"))
    assert of_group.acceptance.group_count.tolist() == [1, 1, 1]
    assert of_round.acceptance.group_count.tolist() == [1, 0, 0]
    taken = drawn(settings(copies="run"), prompts(same=all_the_same), taken=torch.tensor([0]))
    assert int(taken.acceptance.count) == 0
    # What is not accepted for its copies is not what a group falls back on.
    best = drawn(settings(copies="round", empty="best"), prompts(same=all_the_same))
    assert best.acceptance.group_count.tolist() == [1, 0, 0]


@pytest.mark.parametrize("advantage", ["acceptance", "reward"])
def test_contrast_takes_copies_for_neither_side(advantage):
    """All as good as the accepted ones: nothing is taught. Beside worse ones, as if the copies had not been drawn."""
    everything = drawn(settings(copies="group"), prompts(same=same))
    assert int(everything.dropped.sum()) == 9
    assert everything.kept(0.25, "contrast", advantage=advantage).rows == 0
    rewards = everything.rewards
    limit = float(rewards.sort(dim=1).values[:, 1:3].mean())
    some = settings(copies="group").model_copy(
        update={"select": SelectSettings(rule="binary", threshold=limit, copies="group")}
    )
    candidates = drawn(some, prompts(same=same))
    good = candidates.rewards >= limit
    assert torch.equal(candidates.dropped, good & ~candidates.acceptance.mask) and int(candidates.dropped.sum()) > 0
    kept = candidates.kept(0.25, "contrast", advantage=advantage)
    dropped = candidates.sample_id.view_as(good)[candidates.dropped]
    assert kept.rows > 0 and not torch.isin(kept.sample_id, dropped).any()
    if advantage == "acceptance":
        rejected = (~good).sum(dim=1)
        share = rejected / (rejected + candidates.acceptance.group_count)
        group = torch.searchsorted(candidates.sample_id, kept.sample_id) // 4
        assert torch.allclose(kept.advantage.abs(), 2.0 * share[group])


def test_without_a_sense_of_the_same_bits_decide():
    got = drawn(settings(), prompts())
    assert got.acceptance.group_count.tolist() == [4, 4, 4]


def run(folder, rounds, **select):
    config = settings(**select)
    config = config.model_copy(update={"train": config.train.model_copy(update={"rounds": rounds})})

    def number(samples, condition):
        """Of 60."""
        return (samples[:, 0, 0] * 1e4).round().to(torch.int64) % 60

    trainer = Trainer(
        Net(), COSINE, lambda x: x.flatten(1).sum(1), config, shape=(5, WIDTH), parameterization="v",
        prompts=prompts(same=number), run=folder, log=lambda line: None,
    )  # fmt: skip
    trainer.run_rounds()
    return trainer


def test_copies_over_rounds_and_after_a_resume(tmp_path):
    whole = run(tmp_path / "a", 3, copies="run")
    taken = whole._method._taken.tolist()
    assert len(taken) == len(set(taken)) == sum(entry["accepted"] for entry in whole.history)
    run(tmp_path / "b", 1, copies="run")
    again = run(tmp_path / "b", 3, copies="run")
    assert again._method._taken.tolist() == taken
    assert torch.equal(again.tuned.layer.weight, whole.tuned.layer.weight)
    each = run(tmp_path / "c", 3, copies="round")
    assert each._method._taken is None
    assert sum(entry["accepted"] for entry in each.history) > len(taken)
    assert set(each.last_candidates) == {"reward", "accepted", "copies"}


def test_what_has_no_meaning():
    with pytest.raises(ValidationError, match="copies= has no meaning for rule 'top_k'"):
        FinetuneSettings(
            sample=SampleSettings(prompts=1, candidates=2, steps=2), select=SelectSettings(k=1, copies="run")
        )
    with pytest.raises(InputError, match="copies_of"):
        accept(torch.zeros(1, 2), "top_k", k=1, copies_of=torch.zeros(1, 2, dtype=torch.int64))
