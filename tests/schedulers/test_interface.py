"""What a script sees: classes, signatures, saved configurations, noise added in mid-run, gradients, no waiting."""

import copy
import inspect
import json
import pickle
import subprocess
import sys

import pytest
import torch
from schedulers.twins import KINDS, PAIRS

from pgraft_fast.errors import InputError

X = torch.linspace(-1.0, 1.0, 24).reshape(2, 3, 2, 2)


def ready(kind, steps=8, **config):
    pair = [cls(**config) for cls in PAIRS[kind]]
    for scheduler in pair:
        scheduler.set_timesteps(steps)
    return pair


def step(scheduler, index, x, **options):
    t = scheduler.timesteps[index]
    x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
    return scheduler.step(torch.tanh(x_in), t, x, **options).prev_sample


@pytest.mark.parametrize("kind", KINDS)
def test_classes_and_signatures(kind):
    original, ours = PAIRS[kind]
    assert issubclass(ours, original)
    fast = ours.from_config(original(num_train_timesteps=500).config)
    assert fast.config.num_train_timesteps == 500
    for name in ("step", "scale_model_input", "add_noise", "set_timesteps", "scale_noise", "get_velocity"):
        if hasattr(original, name):
            wanted = inspect.signature(getattr(original, name)).parameters
            if name == "scale_model_input" and "args" in wanted:
                continue
            assert list(inspect.signature(getattr(ours, name)).parameters) == list(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_under_the_name_of_diffusers(kind, tmp_path):
    original, ours = PAIRS[kind]
    ours(num_train_timesteps=300).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == original.__name__
    for cls in (original, ours):
        assert cls.from_pretrained(tmp_path).config.num_train_timesteps == 300


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_go_on_in_mid_run(kind, copied):
    scheduler = ready(kind)[1]
    x = X
    for index in range(3):
        x = step(scheduler, index, x)
    twin = copied(scheduler)
    # A copied timestep is not a view of the copy's: the scheduler finds it by value.
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    a, b = (step(instance, 3, x, generator=seed) for instance, seed in zip((scheduler, twin), seeds, strict=True))
    assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_added_before_and_in_mid_run(kind):
    theirs, mine = ready(kind)
    noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(2))
    times = theirs.timesteps[2:3].expand(2)
    name = "scale_noise" if kind == "flow" else "add_noise"

    def added(scheduler):
        if kind == "flow":
            return scheduler.scale_noise(X, times, noise)
        return scheduler.add_noise(X, noise, times)

    assert torch.equal(added(theirs), added(mine)), name
    for index in range(3):
        seeds = [torch.Generator().manual_seed(index) for _ in range(2)]
        x = [step(instance, index, X, generator=seed) for instance, seed in zip((theirs, mine), seeds, strict=True)]
        torch.testing.assert_close(*x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(added(mine), added(theirs), rtol=0, atol=0)
    if hasattr(theirs, "get_velocity") and kind != "euler":
        assert torch.equal(theirs.get_velocity(X, noise, times), mine.get_velocity(X, noise, times))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_as_in_diffusers(kind):
    grads = []
    for scheduler in ready(kind):
        x, out = (X.clone().requires_grad_() for _ in range(2))
        t = scheduler.timesteps[2]
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        scheduler.step(out, t, x, generator=torch.Generator().manual_seed(0)).prev_sample.square().sum().backward()
        grads.append((x.grad, out.grad))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_dtypes_of_results(kind, dtype, shape, prediction):
    """Of a timestep that is a number, and of one that is a tensor with one element."""
    config = {} if kind == "flow" else {"prediction_type": prediction}
    results = []
    for scheduler in ready(kind, **config):
        x, t = X.to(dtype), scheduler.timesteps[2].reshape(shape)
        x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        done = scheduler.step(torch.tanh(x_in), t, x, generator=torch.Generator().manual_seed(0))
        results.append((done.prev_sample, getattr(done, "pred_original_sample", None)))
    for mine, theirs in zip(results[1], results[0], strict=True):
        if theirs is not None:
            assert mine.dtype is theirs.dtype
            tight = {torch.bfloat16: 2e-2, torch.float16: 3e-3}.get(dtype, 1e-4)
            torch.testing.assert_close(mine, theirs, rtol=tight, atol=tight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scheduler_that_is_replaced_after_it_was_used(kind):
    """Attributes that change between steps act from then on."""
    original, ours = PAIRS[kind]
    source = original()
    twin = ours.twin_of(source)
    source.set_timesteps(6)
    assert torch.equal(twin.timesteps, source.timesteps) and vars(twin) is vars(source)
    other = original()
    other.set_timesteps(6)
    x = [X, X]
    for index in range(6):
        for scheduler in (source, other):
            if kind in ("ddim", "ddpm"):
                scheduler.alphas_cumprod = scheduler.alphas_cumprod * 0.99
            else:
                scheduler.sigmas = scheduler.sigmas * 0.99
        seeds = [torch.Generator().manual_seed(index) for _ in range(2)]
        x = [step(*made, generator=seed) for made, seed in
             zip(((twin, index, x[0]), (other, index, x[1])), seeds, strict=True)]  # fmt: skip
        torch.testing.assert_close(*x, rtol=1e-4, atol=1e-4)


class OnDevice(torch.Tensor):
    """A tensor as if on a GPU: to read it on the host would wait."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", str(func))
        waits = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__", "equal"}
        assert name not in waits, f"{name} would wait for the device"
        return super().__torch_function__(func, types, args, kwargs or {})


RUNS = [
    ("ddim", {}, {"eta": 0.5}),
    ("ddim", {"thresholding": True, "sample_max_value": 2.0}, {"use_clipped_model_output": True}),
    ("ddpm", {}, {}),
    ("ddpm", {"variance_type": "fixed_large", "clip_sample": False}, {}),
    ("euler", {"prediction_type": "v_prediction"}, {"s_churn": 3.0}),
    ("dpm", {"solver_order": 3}, {}),
    ("dpm", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("flow", {"stochastic_sampling": True}, {}),
]


@pytest.mark.parametrize(("kind", "config", "options"), RUNS)
def test_a_step_reads_nothing_back(kind, config, options):
    scheduler = ready(kind, **config)[1]
    x = X.as_subclass(OnDevice)
    with pytest.raises(AssertionError, match="would wait"):
        x.sum().item()
    for index in range(8):
        t = scheduler.timesteps[index].as_subclass(OnDevice)
        x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(torch.tanh(x_in), t, x, generator=torch.Generator().manual_seed(index), **options)[0]
    assert torch.Tensor.as_subclass(x, torch.Tensor).isfinite().all()


def test_bad_input_names_what_is_wrong():
    with pytest.raises(InputError, match=r"timestep=3 is not one of scheduler\.timesteps"):
        ready("ddpm")[1].step(X, 3, X)
    with pytest.raises(InputError, match="variance_type='fixed_large_log' gives NaN"):
        step(ready("ddpm", variance_type="fixed_large_log")[1], 0, X)
    third = ready("dpm", solver_order=3, algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min", steps=20)[1]
    with pytest.raises(InputError, match="solver_order=3 is not defined"):
        [step(third, index, X) for index in range(4)]
    for kind in ("ddim", "dpm"):
        with pytest.raises(ValueError, match="set_timesteps"):
            PAIRS[kind][1]().step(X, 5, X)


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_imports():
    code = (
        "import sys\n"
        "from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler\n"
        "from diffusers import FlowMatchEulerDiscreteScheduler\n"
        "before = set(sys.modules)\n"
        "import pgraft_fast.schedulers\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    assert eval(run_python(code).stdout) == ["pgraft_fast"]
    missing = run_python("import sys; sys.modules['diffusers'] = None; import pgraft_fast.schedulers")
    assert missing.stderr.strip().splitlines()[-1].endswith("pip install 'pgraft-fast[diffusers]'")
