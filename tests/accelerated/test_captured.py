"""What would be captured as a CUDA graph, on fake CUDA tensors: nothing is copied from the host or read back."""

import copy

import diffusers
import every_pipeline
import pytest
import torch
from fake_cuda import NoTransfers, on_fake_cuda
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from pgraft_fast import accelerate
from pgraft_fast.pipelines.accelerated.trajectory import function_of
from pgraft_fast.pipelines.calls import Calls, seeds_of
from pgraft_fast.schedulers.fused import version

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Of Stable Diffusion; the others have one of their own.
SOLVERS = {
    "ddim": lambda: diffusers.DDIMScheduler(**BETAS, clip_sample=False),
    "ddim clipped": lambda: diffusers.DDIMScheduler(**BETAS, clip_sample=True),
    "ddpm": lambda: diffusers.DDPMScheduler(**BETAS, clip_sample=False),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**BETAS),
    "dpm 1": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, solver_order=1),
    "dpm 2": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS),
    "dpm 3": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, solver_order=3),
    "dpm sde": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++"),
}
# One way of calling a denoiser each: one call or two, a list, constants behind the state, another network, packed.
NAMES = ("sdxl", "sd_img2img", "sd_inpaint", "sd_controlnet", "sd3", "flux", "qwen_image", "z_image", "lumina2", "wan")


def trajectory_of(pipe, name):
    """(trajectory, states) of a second call, with its scheduler as it was before the steps."""
    accelerate(pipe)
    recorded, own = [], pipe._pgraft_fast.runner.run

    def run(trajectory, x, first, last):
        before = {k: v.copy() if isinstance(v, list) else v for k, v in trajectory.scheduler.attributes.items()}
        recorded.append((copy.copy(trajectory), x, before))
        return own(trajectory, x, first, last)

    pipe._pgraft_fast.runner.run = run
    calls = Calls(pipe, every_pipeline.prompts_of(name), every_pipeline.call_of(name))
    for number in (0, 1):
        arguments = calls.of(number, 2, seeds_of(0, (1, 2)), 6)
        pipe(**{key: value for key, value in arguments.items() if key != "generator"})
    ((trajectory, x, before),) = recorded
    trajectory.scheduler.attributes.update(before)
    return trajectory, x


def fake(tree):
    """Its tensors on a fake CUDA device."""
    return pytree.tree_map(lambda leaf: on_fake_cuda(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree)


def moved(scheduler):
    """As `set_timesteps` leaves it for a CUDA device: what it works out is known on the host."""
    kept = scheduler._kept
    scheduler.timesteps = fake(scheduler.timesteps)
    kept.times = kept.times._replace(seen=scheduler.timesteps, written=version(scheduler.timesteps))
    if scheduler._sigmas_on_device:
        host, scheduler.sigmas = scheduler.sigmas, fake(scheduler.sigmas)
        kept.sigmas = scheduler.sigmas, version(scheduler.sigmas), host


def check(trajectory, x, on_host=False):
    """on_host: timesteps have not been brought to the device."""
    mode, scheduler, steps = FakeTensorMode(), trajectory.scheduler, (trajectory.first, trajectory.last)
    answers, functions = {}, {name: function_of(net) for name, net in trajectory.nets.items()}

    def kept(name):
        def call(*args, **kwargs):
            answers[name] = functions[name](*args, **kwargs)
            return answers[name]

        return call

    with trajectory.rehearsal():
        trajectory.run(x, *steps, {name: kept(name) for name in functions})
    with mode:
        trajectory.arguments, x, answers = fake(list(trajectory.arguments)), fake(x), fake(answers)
        moved(scheduler)
    plan = scheduler.plan(*steps, x, trajectory.options)
    with mode:
        # Rows and times are brought to the device before a capture.
        table, counters = plan.rows.values, torch.arange(len(plan.rows.values), device="cuda").unbind()
        plan.rows._on[(x.device, False)] = torch.empty(table.shape, device="cuda"), counters
        scheduler.timesteps = torch.empty(scheduler.timesteps.shape) if on_host else scheduler.timesteps
        trajectory.times = None if on_host else scheduler.timesteps
        # What is in the networks is diffusers'.
        outs = {name: lambda *args, name=name, **kwargs: answers[name] for name in answers}
        with trajectory.rehearsal(), NoTransfers():
            out = trajectory.run(x, *steps, outs)
    assert out.shape == x.shape and out.device.type == "cuda"


@pytest.mark.parametrize("name", NAMES)
def test_of_each_way_to_call_a_denoiser(name):
    check(*trajectory_of(every_pipeline.build(name), name))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance", [{}, {"guidance_rescale": 0.5}])
def test_of_each_solver(solver, guidance):
    pipe = every_pipeline.build("sd")
    pipe.scheduler = SOLVERS[solver]()
    trajectory, x = trajectory_of(pipe, "sd")
    if guidance:
        trajectory.explanation = copy.copy(trajectory.explanation)
        object.__setattr__(trajectory.explanation, "rescale", guidance["guidance_rescale"])
    check(trajectory, x)


def test_a_copy_from_the_host_is_noticed():
    trajectory, x = trajectory_of(every_pipeline.build("sd"), "sd")
    with pytest.raises(AssertionError, match=r"moves|_pin_memory"):
        check(trajectory, x, on_host=True)
