"""Configurations by hand: long schedules, low precision, mixed dtypes, and how `step` is called."""

import pytest
import torch
from schedulers.twins import KINDS, PAIRS, Setup, apart, check_parity, follow, largest, prepared, step

BF16, FP16, FP64 = torch.bfloat16, torch.float16, torch.float64
LONG = {"num_inference_steps": 200}
LONGEST = {"num_inference_steps": 1000}


@pytest.mark.parametrize("kind", KINDS)
def test_long_schedules(kind):
    check_parity(Setup(kind, schedule=LONG), rounding=1e-4)


@pytest.mark.parametrize(
    "setup",
    [
        Setup("ddim", {"clip_sample": False, "prediction_type": "v_prediction"}, LONGEST, {"eta": 1.0}),
        Setup("ddpm", schedule=LONGEST),
        Setup("euler", {"use_karras_sigmas": True}, LONGEST),
        Setup("dpm", {"use_karras_sigmas": True, "solver_order": 3}, LONGEST),
        Setup("flow", {"shift": 3.0}, LONGEST),
    ],
    ids=lambda setup: setup.kind,
)
def test_a_thousand_steps(setup):
    check_parity(setup, rounding=1e-4)


CONFIGS = [
    ("ddim", {"clip_sample": False}, {}),
    ("ddim", {"clip_sample": True}, {"eta": 0.7}),
    ("ddim", {"prediction_type": "v_prediction", "thresholding": True, "sample_max_value": 1.5}, {}),
    ("ddpm", {}, {}),
    ("ddpm", {"variance_type": "learned_range"}, {}),
    ("euler", {}, {}),
    ("euler", {"prediction_type": "v_prediction"}, {"s_churn": 2.0}),
    ("dpm", {}, {}),
    ("dpm", {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}, {}),
    ("flow", {}, {}),
    ("flow", {"stochastic_sampling": True}, {}),
]


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize(("kind", "config", "options"), CONFIGS)
def test_low_precision_is_no_farther_from_the_truth(kind, config, options, dtype):
    """Each step from diffusers' own states: ours rounds once, diffusers once an operation."""
    original, ours = PAIRS[kind]
    setup = Setup(kind, config, {"num_inference_steps": 12}, options, dtype=dtype)
    theirs = follow(original, setup)
    mine = follow(ours, setup, along=theirs)
    assert theirs.error is None and mine.error is None
    wide = Setup(kind, config, setup.schedule, options, dtype=torch.float32, out_dtype=dtype)
    truth = follow(original, wide, exact=True, along=theirs)
    # Where noise is drawn in the low precision, float32 states would draw others.
    drawn = setup.options.get("eta") or kind == "ddpm" or setup.options.get("s_churn")
    for mine_x, their_x, true_x in zip(mine.x[1:], theirs.x[1:], truth.x[1:], strict=True):
        assert mine_x.dtype is their_x.dtype is dtype
        limit = 2 * torch.finfo(dtype).eps * largest(their_x)
        if drawn:
            assert apart(mine_x, their_x) <= 2 * limit
        else:
            assert apart(mine_x, true_x) <= 1.5 * apart(their_x, true_x) + limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "out_dtype"), [(torch.float32, BF16), (BF16, torch.float32), (FP64, None)])
def test_dtypes_of_the_results(kind, dtype, out_dtype):
    setup = Setup(kind, {}, {"num_inference_steps": 5}, dtype=dtype, out_dtype=out_dtype)
    theirs, mine = (follow(cls, setup) for cls in PAIRS[kind])
    assert theirs.error is None and mine.error is None
    assert [x.dtype for x in mine.x] == [x.dtype for x in theirs.x]
    assert [x.dtype for x in mine.x_0] == [x.dtype for x in theirs.x_0]
    loose = 1e-5 if out_dtype is None else 0.1
    assert apart(mine.x[-1], theirs.x[-1]) <= loose * max(map(largest, theirs.x))


def test_each_token_with_a_time_of_its_own():
    check_parity(Setup("flow", per_token=True, shape=(2, 6, 5)))


@pytest.mark.parametrize("kind", KINDS)
def test_other_shapes(kind):
    for shape in [(1, 3), (2, 3, 5), (1, 3, 2, 3, 4)]:
        check_parity(Setup(kind, shape=shape))


@pytest.mark.parametrize(("kind", "options"), [("ddpm", {}), ("ddim", {"eta": 1.0})])
@pytest.mark.parametrize("t", [1, 2, 5])
def test_neighbouring_levels_are_divided_as_in_diffusers(kind, options, t):
    """What a step between two of a thousand adds is 1 - a ratio near 1, of whose digits float32 leaves four."""
    original, ours = (prepared(cls, Setup(kind, {"clip_sample": False}, LONGEST))[0] for cls in PAIRS[kind])
    theirs, mine = (step(scheduler, scheduler.timesteps[-1 - t], **options)[0] for scheduler in (original, ours))
    assert apart(mine, theirs) < 3e-7 * largest(theirs)
