"""Trajectories as graphs, on the processor: a tape of torch's operations stands for what CUDA captures."""

import diffusers
import pytest
import torch
from accelerated.calls import call, off, taken_over
from graph_caches import OtherCache, taped
from pipelines import build
from repeats import repeats

from pgraft_fast import PGraftCallback, accelerate
from pgraft_fast.pipelines.accelerated import runner as runners
from pgraft_fast.sampling import rounding

peft = pytest.importorskip("peft")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SOLVERS = {
    "euler": diffusers.EulerDiscreteScheduler(**BETAS),
    "dpm 3": diffusers.DPMSolverMultistepScheduler(**BETAS, solver_order=3),
    "dpm sde": diffusers.DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++"),
}


def with_graphs(pipe, mode="trajectory_graph"):
    """accelerate(pipe) with a mode that it refuses on the processor; its graphs."""
    accelerate(pipe)
    runner = pipe._pgraft_fast.runner
    runner._mode = lambda *args: mode
    runner._graphs = OtherCache(taped)
    return runner._graphs


def draw(pipe, name, seed, **more):
    """A call with the default generator, the only one that the tape knows; its first noise depends on the seed."""
    prompt = {} if name in ("ddpm", "ddim") else {"prompt": f"picture {seed}"}
    return call(pipe, name, None, **{"num_inference_steps": 3, **prompt, **more})


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, "trajectory_graph") for name in ("ddpm", "sd", "sd3", "flux", "pixart")), ("sd", "step_graph"),
        *repeats(*((name, "trajectory_graph") for name in ("ddim", "sdxl", "sana")), ("flux", "step_graph")),
    ],
)  # fmt: skip
def test_the_same_pictures(name, mode):
    pipe = build(name)
    want = [draw(pipe, name, seed) for seed in range(3)]
    graphs = with_graphs(pipe, mode)
    for seed in range(3):
        assert off(draw(pipe, name, seed), want[seed]) < 1e-4
    assert len(graphs) == 1 and taken_over(pipe)


@pytest.mark.parametrize("kind", ["UniPCMultistep", "EulerAncestralDiscrete"])
def test_a_scheduler_without_a_fast_version(kind):
    """Its steps are not captured, the network's calls are."""
    pipe = build("sd")
    pipe.scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(pipe.scheduler.config)
    want = [draw(pipe, "sd", seed) for seed in range(3)]
    graphs = with_graphs(pipe)
    for seed in range(3):
        assert off(draw(pipe, "sd", seed), want[seed]) < 1e-4
    assert len(graphs) == 1 and taken_over(pipe)


@pytest.mark.parametrize("solver", ["dpm 3", "dpm sde", *repeats("euler")])
def test_kinds_of_calls_one_after_the_other(solver):
    pipe = build("sd")
    pipe.scheduler = SOLVERS[solver]
    kinds = [{}, {"guidance_scale": 3.0}, {"num_images_per_prompt": 2}, {"num_inference_steps": 5}]
    kinds += [{"guidance_scale": 1.0}, {"guidance_rescale": 0.5}]
    calls = [(seed, more) for more in kinds for seed in (range(2) if more == {} else range(1))]
    want = [draw(pipe, "sd", seed, **more) for seed, more in calls]
    graphs = with_graphs(pipe)
    counts = []
    for _ in range(3):
        for (seed, more), result in zip(calls, want, strict=True):
            assert off(draw(pipe, "sd", seed, **more), result) < 1e-4, more
        counts.append(len(graphs))
    # The first call of a kind is watched; where only the scale is another one, its second step begins a graph.
    assert counts == [2, len(kinds) + 1, len(kinds) + 1]


@pytest.mark.parametrize("solver", ["euler", "dpm 3"])
def test_handover_between_two_graphs(solver):
    """The second graph goes on with the state, the counters and the history of the first."""
    pipe = build("sd")
    pipe.scheduler = SOLVERS[solver]
    pipe.unet.add_adapter(peft.LoraConfig(target_modules=["to_q", "to_v"], r=4, init_lora_weights=False))
    calls = [(seed, cut) for cut in (0.3, 0.6) for seed in range(2)]
    want = [
        draw(pipe, "sd", seed, callback_on_step_end=PGraftCallback(cut), num_inference_steps=7) for seed, cut in calls
    ]
    with_graphs(pipe)
    for (seed, cut), result in zip(calls, want, strict=True):
        got = draw(pipe, "sd", seed, callback_on_step_end=PGraftCallback(cut), num_inference_steps=7)
        assert off(got, result) < 1e-4, cut


def test_what_changes_in_a_model_between_calls():
    pipe, twin = build("sd"), build("sd")
    for pipeline in (pipe, twin):
        torch.manual_seed(3)
        pipeline.unet.add_adapter(peft.LoraConfig(target_modules=["to_q", "to_v"], r=4, init_lora_weights=False))
    graphs = with_graphs(pipe)

    def scaled(unet):
        with torch.no_grad():
            for weight in unet.parameters():
                weight.mul_(1.1)

    changes = [
        scaled, lambda unet: unet.disable_adapters(), lambda unet: unet.enable_adapters(),
        lambda unet: unet.set_adapters(["default"], [0.3]), lambda unet: unet.enable_freeu(0.9, 0.2, 1.2, 1.4),
        lambda unet: unet.fuse_lora(),
    ]  # fmt: skip
    pictures = []
    for change in [lambda unet: None, *changes]:
        for pipeline in (pipe, twin):
            change(pipeline.unet)
        for seed in range(2):
            pictures.append(draw(twin, "sd", seed))
            assert off(draw(pipe, "sd", seed), pictures[-1]) < 1e-4
    assert len(graphs) > 4
    assert off(pictures[0], pictures[2]) > 1e-3


def test_memory_ends_in_a_call(caplog):
    pipe = build("sd")
    want = draw(pipe, "sd", 0)
    graphs, state = with_graphs(pipe), []

    def full(function, inputs, generators):
        state.append(function([value.clone() for value in inputs], []))
        raise torch.OutOfMemoryError("no memory left")

    graphs.other = full
    for _ in range(3):
        assert off(draw(pipe, "sd", 0, eta=0.0), want) < 1e-4
    assert len(state) == len(caplog.records) == 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_trial_is_of_a_few_steps_and_changes_nothing(solver, monkeypatch):
    pipe = build("sd")
    pipe.scheduler = SOLVERS[solver]
    want = [draw(pipe, "sd", seed, num_inference_steps=9) for seed in range(3)]
    graphs, steps = with_graphs(pipe), {}
    runner = pipe._pgraft_fast.runner
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))

    def choose(what, ways, device, allowed):
        states = {}
        for mode, run in ways.items():
            made = []
            with monkeypatch.context() as patch:
                patch.setattr(type(pipe.unet), "forward", counted(type(pipe.unet).forward, made))
                states[mode] = run()
            steps[mode] = len(made)
            # Of whatever noise the ways draw, it is the same.
            assert torch.equal(run(), states[mode]) and rounding.off(states[mode], states["eager"]) <= allowed
        return "eager"

    monkeypatch.setattr(runners, "choose", choose)
    runner._modes = ("eager", "step_graph", "trajectory_graph")
    runner._mode = lambda trajectory, x, first, last: runner._trial("sd", trajectory, x, first, last)
    for seed in range(3):
        assert off(draw(pipe, "sd", seed, num_inference_steps=9), want[seed]) < 1e-4
    # A graph of a step is captured in its second run, that of all of them as a whole.
    assert steps == {"eager": 3, "step_graph": 2, "trajectory_graph": 6} and len(graphs) == 0


def counted(forward, made):
    def call(self, *args, **kwargs):
        made.append(1)
        return forward(self, *args, **kwargs)

    return call
