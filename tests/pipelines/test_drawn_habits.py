"""Loops with habits that choose, remember and limit, accelerated: never another picture than plain diffusers'."""

import copy
import random

import diffusers
import pytest
import torch
from diffusers import ImagePipelineOutput
from repeats import repeats
from toy_pipeline import ToyNet, ToyPipeline

from pgraft_fast import accelerate

# What acts where it is reached, and is not to be seen in a call where it is not.
HIDDEN = ("limited", "chosen_by_state", "mean_of_last", "output_in_result")
HABITS = (
    "null_last", "interleaved", "two_calls", "hint", "scale_by_step", "guided_late", "adds_state", "label_by_step",
    "skips_last", "second_later", "time_moved", "state_scaled", "noise", "remembers", "sigmas_scaled", *HIDDEN,
)  # fmt: skip
KINDS = (
    "DDIM", "DDPM", "EulerDiscrete", "FlowMatchEulerDiscrete", "DPMSolverMultistep", "UniPCMultistep",
    "EulerAncestralDiscrete", "HeunDiscrete",
)  # fmt: skip


class Net(ToyNet):
    """Takes a hint from another one."""

    def forward(self, state, time, label, hint=None):
        out = super().forward(state, time, label)[0]
        return (out if hint is None else out + 0.3 * hint.flip(-1),)


class Habitual(ToyPipeline):
    """habits: a set of HABITS."""

    def __init__(self, net, second, scheduler, habits=()):
        super().__init__(net, scheduler)
        self.register_modules(second=second)
        self.habits = sorted(habits)

    @torch.no_grad()
    def __call__(self, prompt, guidance_scale=3.0, num_inference_steps=4, generator=None):
        texts = [prompt] if isinstance(prompt, str) else prompt
        label = torch.tensor([len(text) / 10.0 for text in texts])
        x = diffusers.utils.torch_utils.randn_tensor((len(label), 3, 4, 4), generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        x, times = x * getattr(self.scheduler, "init_noise_sigma", 1.0), self.scheduler.timesteps
        before, held = x, None
        for number, t in enumerate(times):
            if "skips_last" in self.habits and number == len(times) - 1:
                break
            if "sigmas_scaled" in self.habits and number == 1 and hasattr(self.scheduler, "sigmas"):
                self.scheduler.sigmas = self.scheduler.sigmas * 0.99
            out = self._output(x, t, label, guidance_scale, number, len(times))
            if "remembers" in self.habits:
                held = out = out if held is None else 0.5 * (held + out)
            before, x = x, self.scheduler.step(out, t, x, return_dict=False)[0]
        x = 0.5 * (x + before) if "mean_of_last" in self.habits else x
        return ImagePipelineOutput(images=torch.sigmoid(x + 0.1 * out if "output_in_result" in self.habits else x))

    def _output(self, x, t, label, scale, number, steps):
        habits, state = self.habits, self._scaled(x, t)
        state, t = 0.9 * state if "state_scaled" in habits else state, t + 1 if "time_moved" in habits else t
        label = label * (1.0 + 0.1 * number) if "label_by_step" in habits else label
        scale = scale * (1.0 - 0.1 * number) if "scale_by_step" in habits else scale
        later = "second_later" in habits and number >= steps // 2
        net = self.second if later or ("chosen_by_state" in habits and float(x.mean()) > 0.2) else self.net
        hint = self.second(state, t, label)[0] if "hint" in habits else None
        if scale <= 1.0 or ("guided_late" in habits and number < 2):
            out = net(state, t, label, hint)[0]
        else:
            null, out = self._answers(net, state, t, label, hint)
            out = null + scale * (out - null)
        out = out + 0.1 * state if "adds_state" in habits else out
        out = out.clamp(-1.0, 1.0) if "limited" in habits else out
        return out + 0.01 * torch.randn(out.shape) if "noise" in habits else out

    def _answers(self, net, state, t, label, hint):
        if "two_calls" in self.habits:
            return [net(state, t, own, hint)[0] for own in (0.0 * label, label)]
        last = "null_last" in self.habits
        labels = torch.stack((label, 0.0 * label) if last else (0.0 * label, label))
        if "interleaved" in self.habits:
            double = [None if value is None else value.repeat_interleave(2, dim=0) for value in (state, hint)]
            answers = net(double[0], t, labels.T.flatten(), double[1])[0]
            parts = [answers[0::2], answers[1::2]]
        else:
            double = [None if value is None else torch.cat((value, value)) for value in (state, hint)]
            parts = net(double[0], t, labels.flatten(), double[1])[0].chunk(2)
        return parts[::-1] if last else parts


def pair(habits, kind, seed):
    """A pipeline as it is, and an accelerated one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nets = Net(), Net()
    pipes = []
    for _ in range(2):
        scheduler = getattr(diffusers, f"{kind}Scheduler")()
        pipes.append(Habitual(*copy.deepcopy(nets), scheduler, habits))
        pipes[-1].set_progress_bar_config(disable=True)
    return pipes[0], accelerate(pipes[1])


def check(plain, pipe, seed, prompt, **more):
    """The same from both."""
    made = []
    for pipeline in (plain, pipe):
        torch.manual_seed(seed)
        made.append(pipeline(prompt, generator=torch.Generator().manual_seed(seed), **more).images)
    assert float((made[0] - made[1]).abs().max()) <= 2e-5


@pytest.mark.parametrize("seed", [*range(100), *repeats(*range(100, 1000))])
def test_drawn_habits(seed):
    rng = random.Random(seed)
    # In few steps no drawn state may make the other choice.
    habits = rng.sample(sorted({*HABITS} - {"chosen_by_state"}), rng.choice((0, 1, 1, 2, 2, 3)))
    plain, pipe = pair(habits, rng.choice(KINDS), seed)
    steps, known = rng.randrange(3, 8), 0
    for number in range(7):
        prompt = ("a", "bb", "ccc")[number % 3] if rng.random() < 0.7 else ["a", "bbbb"]
        more = {"num_inference_steps": steps + (rng.random() < 0.2), "guidance_scale": rng.choice((1.0, 3.0, 3.0, 5.0))}
        check(plain, pipe, number, prompt, **more)
        known = max(known, len(pipe._pgraft_fast.known))
    assert known or habits


@pytest.mark.parametrize("habit", HIDDEN)
@pytest.mark.parametrize("kind", KINDS)
def test_what_real_answers_and_states_do_not_tell(habit, kind, caplog):
    """It is seen by answers and states of other sizes, in the call that is rehearsed."""
    plain, pipe = pair([habit], kind, 0)
    # So that nothing is limited, and of two networks the first one is asked, in the call that is watched.
    with torch.no_grad():
        for pipeline in (plain, pipe):
            pipeline.net.to_v.weight.mul_(0.1)
    with caplog.at_level("INFO", logger="pgraft_fast"):
        for seed in range(4):
            check(plain, pipe, seed, "a cube", num_inference_steps=12)
    (line,) = [record.message for record in caplog.records if record.name.startswith("pgraft_fast")]
    assert line.startswith("Habitual: such calls run in its own loop: ") and not len(pipe._pgraft_fast.known)
