"""Rewards: values, and what happens to bad ones."""

from collections import deque
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from pgraft_fast.errors import RewardError
from pgraft_fast.rewards import load_reward, name_of, score, stroke_mass, symmetry
from pgraft_fast.rewards.protocol import as_call, evaluate

SAMPLES = torch.zeros(6, 1, 4, 4)
IDS = torch.arange(100, 106)
PROMPTS = list("abcdef")


def test_symmetry():
    image = torch.rand(3, 1, 8, 8) * 2 - 1
    mirrored = 0.5 * (image + image.flip(-1))
    assert torch.allclose(symmetry(mirrored), torch.ones(3))
    half = torch.cat((torch.ones(1, 1, 8, 4), -torch.ones(1, 1, 8, 4)), dim=3)
    assert float(symmetry(half)) == 0.0
    assert float(symmetry(100 * half)) == 0.0


def test_stroke_mass():
    assert stroke_mass(torch.stack((-torch.ones(1, 2, 2), torch.ones(1, 2, 2), torch.zeros(1, 2, 2)))).tolist() == [
        0,
        1,
        0.5,
    ]


class OfAnotherLibrary:
    def __array__(self, *_, **__):
        raise LookupError("the values are on\na device")


@pytest.mark.parametrize(
    "values",
    [
        [1, 0.5, None, True],
        (np.float16(1), Decimal("0.5"), None, np.bool_(True)),
        [torch.tensor(1), torch.tensor([0.5]), None, np.array([1])],
        [Fraction(1), torch.tensor(0.5, requires_grad=True), float("nan"), 1],
        [1, 0.5, np.ma.masked, 1],
        deque([1, 0.5, None, 1]),
        np.array([1, 0.5, None, 1], object),
        np.array([1, 0.5, np.nan, 1], ">f4"),
        np.ma.masked_array([1, 0.5, 7, 1], [0, 0, 1, 0]),
        torch.tensor([1, 0.5, float("nan"), 1], dtype=torch.bfloat16, requires_grad=True),
    ],
    ids=range(10),
)
def test_none_is_nan(values):
    """In any list of numbers; the others keep their values."""
    rewards = evaluate(as_call(lambda samples: values), "mine", SAMPLES[:4], PROMPTS[:4], range(4))
    assert rewards.dtype == torch.float32 and not rewards.requires_grad
    assert rewards[[0, 1, 3]].tolist() == [1, 0.5, 1] and bool(rewards[2].isnan())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({40: 1.0, 41: 2.0}, "returned dict, not numbers"),
        ({1.0, 2.0}, "returned set, not numbers"),
        ("12", "returned str, not numbers"),
        (b"12", "returned bytes, not numbers"),
        ((x for x in (1.0, 2.0)), "returned generator, not numbers"),
        (torch.tensor([1 + 2j, 1]), "returned Tensor, not numbers"),
        (np.array(["1", "2"]), "returned ndarray, not numbers"),
        (np.array(["2020-01-01", "2020-01-02"], "datetime64[D]"), "returned ndarray, not numbers"),
        ([1.0, "2"], "returned list, not numbers: '2' at place 1"),
        ([1 + 2j, 2.0], r"returned list, not numbers: \(1\+2j\) at place 0"),
        ([1.0, {}], "returned list, not numbers: {} at place 1"),
        ([None, torch.zeros(2)], r"returned list, not numbers: tensor\(\[0., 0.\]\) at place 1"),
        ([[1.0], [None]], "returned list, not numbers"),
        ([[1.0], [2.0, 3.0]], "returned list, not numbers"),
        ([[1.0], [2.0]], r"returned shape \(2, 1\) for 2 samples"),
        ([1.0, None, 3.0], r"returned shape \(3,\) for 2 samples"),
        ([], r"returned shape \(0,\) for 2 samples"),
        (3.0, r"returned shape \(\) for 2 samples"),
        (None, "returned NoneType, not numbers"),
        (OfAnotherLibrary(), "returned OfAnotherLibrary, not numbers: the values are on a device"),
    ],
)
def test_what_is_not_numbers(values, message):
    with pytest.raises(RewardError, match=rf"reward 'mine' {message}.* \(at samples 40 to 41\)$") as caught:
        evaluate(as_call(lambda samples: values), "mine", SAMPLES[:2], PROMPTS[:2], [40, 41])
    assert "\n" not in str(caught.value)


def test_a_number_that_no_float_holds():
    rewards = evaluate(as_call(lambda samples: [10**400, -1e300]), "mine", SAMPLES[:2], PROMPTS[:2], [40, 41])
    assert torch.isinf(rewards).all()


@pytest.mark.parametrize(
    "reward",
    [
        lambda samples: samples.flatten(1).mean(1),
        lambda samples, prompts: [float(len(p) - 1) for p in prompts],
        lambda *everything: np.zeros(len(everything[1])),
    ],
)
def test_any_callable(reward):
    rewards = score(reward, SAMPLES, PROMPTS, IDS, batch_size=4)
    assert rewards.tolist() == [0.0] * 6
    assert rewards.dtype == torch.float32


def test_batches_and_prompts_stay_together():
    seen = []

    def reward(samples, prompts):
        seen.append((len(samples), list(prompts)))
        return torch.zeros(len(samples))

    score(reward, SAMPLES, PROMPTS, IDS, batch_size=4)
    assert seen == [(4, list("abcd")), (2, list("ef"))]


def test_a_few_invalid_samples_are_marked():
    values = torch.arange(40.0)
    values[[3, 7]] = torch.tensor([float("nan"), float("inf")])
    rewards = score(lambda x: values, torch.zeros(40, 1), [""] * 40, torch.arange(40))
    assert torch.isnan(rewards).nonzero().flatten().tolist() == [3, 7]
    assert torch.equal(rewards[8:], values[8:])


def raises(samples):
    raise OSError("the scorer\nis gone")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (raises, r"reward 'raises' raised OSError: the scorer is gone \(at samples 100 to 103\)"),
        (lambda x: torch.zeros(len(x), 1), r"returned shape \(4, 1\) for 4 samples; it must be \(4,\)"),
        (lambda x: torch.tensor(1.0), r"returned shape \(\) for 4 samples"),
        (lambda x: None, "returned NoneType, not numbers"),
        (lambda x: ["good"] * len(x), "returned list, not numbers"),
        (lambda x: [float("nan")] * len(x), r"no finite number for 6 of 6 samples \(the first is sample 100\)"),
    ],
)
def test_bad_rewards(reward, message):
    with pytest.raises(RewardError, match=message):
        score(reward, SAMPLES, PROMPTS, IDS, batch_size=4)


def test_loading(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def good(x):\n    return x.flatten(1).sum(1)\nnumber = 3\n")
    reward = load_reward(f"{file}:good")
    assert name_of(reward) == "good"
    assert float(reward(torch.ones(1, 2, 2))[0]) == 4.0
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    for spec, message in [
        ("mine.py", "expected file.py:function"),
        (f"{tmp_path}/none.py:f", "there is no file"),
        (f"{file}:other", "has no function 'other'"),
        (f"{file}:number", "has no function 'number'"),
        (f"{tmp_path}/broken.py:f", "raised ModuleNotFoundError"),
    ]:
        with pytest.raises(RewardError, match=message):
            load_reward(spec)


def test_a_batch_that_does_not_fit_is_halved():
    batch_sizes = []

    def reward(x):
        batch_sizes.append(len(x))
        if len(x) > 4:
            torch.empty(len(x) << 58, dtype=torch.uint8)
        return x.sum(1)

    x = torch.arange(12.0).view(12, 1)
    assert torch.equal(score(reward, x, [""] * 12, torch.arange(12), batch_size=12), x.sum(1))
    assert batch_sizes == [12, 6, 3, 3, 3, 3]
