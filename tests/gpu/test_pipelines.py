"""Fast schedulers and accelerated pipelines on a GPU: no waiting in a step, the same pictures in every mode."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

from contextlib import contextmanager  # noqa: E402

import diffusers  # noqa: E402
import every_pipeline  # noqa: E402
from gpu_graphs import own_failures  # noqa: E402, F401
from pipelines import NAMES, build, call_arguments  # noqa: E402

from pgraft_fast import accelerate, restore, schedulers  # noqa: E402
from pgraft_fast.pipelines.accelerated.runner import MODES  # noqa: E402
from pgraft_fast.pipelines.calls import Calls, seeds_of  # noqa: E402
from pgraft_fast.pipelines.facts import facts_of  # noqa: E402
from pgraft_fast.pipelines.media import media_of  # noqa: E402
from pgraft_fast.sampling import graphs  # noqa: E402


@pytest.fixture(autouse=True)
def _whole_float32(monkeypatch):
    """Of TF32 the ways to run a model make different roundings, which a few steps make visible."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@contextmanager
def no_waiting():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", schedulers.__all__)
@pytest.mark.parametrize("where", ["cuda", "cpu"])
def test_a_step_does_not_wait(name, where):
    scheduler = getattr(schedulers, name)()
    scheduler.set_timesteps(8, device=where)
    x = torch.randn(2, 4, 8, 8, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    options = {"eta": 1.0} if "DDIM" in name else {}
    torch.cuda.synchronize()
    with no_waiting():
        for t in scheduler.timesteps:
            x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(torch.tanh(x_in), t, x, generator=generator, **options).prev_sample
    assert bool(x.isfinite().all())


def graphs_of(pipe):
    return len(pipe._pgraft_fast.runner._graphs)


def picture(pipe, name, seed=0, **more):
    generator = torch.Generator("cuda").manual_seed(seed)
    arguments = {**call_arguments(name), **more}
    return np.asarray(pipe(**arguments, num_inference_steps=6, generator=generator)[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [mode for mode in MODES if not mode.startswith("compile")])
def test_the_same_pictures(name, mode):
    pipe = build(name).to("cuda")
    want = [picture(pipe, name, seed) for seed in range(4)]
    accelerate(pipe, mode=mode)
    for seed in range(4):
        assert np.abs(picture(pipe, name, seed) - want[seed]).max() < 1 / 255
    assert mode == "eager" or graphs_of(pipe), graphs._failed
    restore(pipe)
    assert np.abs(picture(pipe, name, 0) - want[0]).max() < 1e-4


@pytest.mark.parametrize("mode", ["step_graph", "trajectory_graph"])
@pytest.mark.parametrize("name", every_pipeline.SERVED)
def test_every_pipeline(name, mode, caplog):
    """As graphs, but those whose networks read values back."""
    pipe = every_pipeline.build(name).to("cuda")
    calls = facts_of(Calls(pipe, every_pipeline.prompts_of(name), every_pipeline.call_of(name))).guided.calls
    # Some draw one sample a call.
    rows = calls.rows

    def drawn(seed):
        arguments = calls.of(seed % 2, rows, seeds_of(seed, range(rows)), 6)
        generators = [torch.Generator("cuda").manual_seed(seed + 9 * row) for row in range(rows)]
        arguments["generator"] = generators[0] if rows == 1 else generators
        return media_of(pipe(**arguments))

    want = [drawn(seed) for seed in range(4)]
    accelerate(pipe, mode=mode)
    for seed in range(4):
        for mine, theirs in zip(drawn(seed), want[seed], strict=True):
            assert np.abs(mine.astype(np.float64) - theirs).max() <= 1
    assert not graphs._failed
    if len(pipe._pgraft_fast.known):
        assert bool(graphs_of(pipe)) != ("no CUDA graph can be made" in caplog.text)


@pytest.mark.parametrize("kind", ["UniPCMultistep", "EulerAncestralDiscrete", "PNDM"])
@pytest.mark.parametrize("mode", ["auto", "step_graph", "trajectory_graph"])
def test_a_scheduler_without_a_fast_version(kind, mode):
    """Its own steps, between graphs of the network."""
    pipe = build("sd").to("cuda")
    pipe.scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(pipe.scheduler.config)
    want = [picture(pipe, "sd", seed) for seed in range(3)]
    accelerate(pipe, mode=mode)
    for seed in range(3):
        assert np.abs(picture(pipe, "sd", seed) - want[seed]).max() < 1 / 255
    assert len(pipe._pgraft_fast.known)


def test_noise_and_other_prompts_in_a_graph():
    pipe = build("sd").to("cuda")
    asks = [{"prompt": text, "eta": 1.0, "guidance_scale": scale} for text in ("a", "b") for scale in (3.0, 7.5)]
    want = [picture(pipe, "sd", seed, **ask) for seed, ask in enumerate(asks)]
    accelerate(pipe, mode="trajectory_graph")
    for _ in range(2):
        for seed, ask in enumerate(asks):
            assert np.abs(picture(pipe, "sd", seed, **ask) - want[seed]).max() < 1 / 255


def test_a_host_generator_in_a_graph_mode():
    pipe = build("sd").to("cuda")
    arguments = {**call_arguments("sd"), "num_inference_steps": 6, "eta": 1.0}
    want = np.asarray(pipe(**arguments, generator=torch.Generator().manual_seed(0))[0])
    accelerate(pipe, mode="trajectory_graph")
    for _ in range(3):
        got = np.asarray(pipe(**arguments, generator=torch.Generator().manual_seed(0))[0])
        assert np.abs(got - want).max() < 1 / 255


def test_weights_changed_in_place_are_used():
    pipe = accelerate(build("sd").to("cuda"), mode="trajectory_graph")
    for _ in range(2):
        before = picture(pipe, "sd")
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight.mul_(1.05)
    after = picture(pipe, "sd")
    restore(pipe)
    assert np.abs(after - before).max() > 1 / 255
    assert np.abs(after - picture(pipe, "sd")).max() < 1 / 255


def test_auto_chooses_and_remembers(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PGRAFT_FAST_CACHE", str(tmp_path))
    pipe = build("ddim").to("cuda")
    want = picture(pipe, "ddim")
    accelerate(pipe)
    with caplog.at_level("INFO", logger="pgraft_fast"):
        for _ in range(3):
            assert np.abs(picture(pipe, "ddim") - want).max() < 1 / 255
    assert " is taken (" in caplog.text
    assert (tmp_path / "choices.json").exists()
