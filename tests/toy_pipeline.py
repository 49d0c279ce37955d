"""A pipeline that no library knows, with a loop whose habits can be chosen."""

from dataclasses import dataclass

import diffusers
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class ToyNet(ModelMixin, ConfigMixin):
    """Of a state (B, C, 4, 4), a time and a class."""

    @register_to_config
    def __init__(self, channels: int = 3, scale: float = 1000.0):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(channels + 2, 8), nn.Linear(8, 8)
        self.to_v = nn.Linear(8, channels)
        self.scale = scale

    def forward(self, state, time, label):
        time = (time.to(state.dtype) / self.scale).reshape(-1, 1, 1, 1).expand(state.shape[0], 1, 4, 4)
        label = label.to(state.dtype).reshape(-1, 1, 1, 1).expand(state.shape[0], 1, 4, 4)
        x = torch.cat((state, time, label), dim=1).movedim(1, -1)
        return (self.to_v(torch.tanh(self.to_k(torch.tanh(self.to_q(x))))).movedim(-1, 1),)


@dataclass(frozen=True)
class Habits:
    """Of a loop. The first ones are served, those from `edits` on are not."""

    doubled: bool = True
    negated: bool = False
    sideways: bool = False
    rescaled: bool = False
    constant: bool = False
    single: bool = False
    edits: bool = False
    twice: bool = False
    random: bool = False
    momentum: bool = False
    counted: bool = False


class ToyPipeline(DiffusionPipeline):
    """Pictures of 4 x 4."""

    def __init__(self, net, scheduler, habits=None):
        super().__init__()
        self.register_modules(net=net, scheduler=scheduler)
        self.habits = Habits() if habits is None else habits

    @torch.no_grad()
    def __call__(
        self, prompt, guidance_scale=3.0, num_inference_steps=4, generator=None, num_images_per_prompt=1,
        output_type="pt", picture=None,
    ):  # fmt: skip
        habits, texts = self.habits, [prompt] if isinstance(prompt, str) else prompt
        label = torch.tensor([float(len(text)) / 10.0 for text in texts for _ in range(num_images_per_prompt)])
        if habits.single and len(label) > 1:
            raise ValueError("one at a time")
        self._guidance = guidance_scale
        x = diffusers.utils.torch_utils.randn_tensor((len(label), 3, 4, 4), generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        x = x * self.scheduler.init_noise_sigma if hasattr(self.scheduler, "init_noise_sigma") else x
        held = torch.zeros_like(x)
        with self.progress_bar(total=num_inference_steps) as bar:
            for number, t in enumerate(self.scheduler.timesteps):
                out = self._guided(self._scaled(x, t), t, label)
                if habits.momentum:
                    held = out = 0.5 * held + out
                if habits.random:
                    out = out + 0.1 * torch.randn_like(out)
                if habits.counted:
                    out = out * (1.0 + 0.1 * number)
                if habits.twice:
                    x = self.scheduler.step(out, t, x, return_dict=False)[0]
                    self.scheduler._step_index = number
                x = self.scheduler.step(out, t, x, return_dict=False)[0]
                if habits.edits:
                    x[:, :, 0] = 0.25
                bar.update()
        return ImagePipelineOutput(images=torch.sigmoid(x))

    def _scaled(self, x, t):
        return self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x

    def _guided(self, x, t, label):
        habits = self.habits
        state = x.flip(-1) if habits.sideways else x
        if habits.constant:
            state = state + 0.1
        if self._guidance <= 1.0:
            out = self.net(state, t, label)[0]
        elif habits.doubled:
            time = t.expand(2 * len(x))
            null, out = self.net(torch.cat((state, state)), time, torch.cat((0.0 * label, label)))[0].chunk(2)
            out = self._combined(null, out)
        else:
            null, out = self.net(state, t, 0.0 * label)[0], self.net(state, t, label)[0]
            out = self._combined(null, out)
        out = out.flip(-1) if habits.sideways else out
        return -out if habits.negated else out

    def _combined(self, null, out):
        guided = null + self._guidance * (out - null)
        if self.habits.rescaled:
            guided = guided * out.norm(dim=1, keepdim=True) / guided.norm(dim=1, keepdim=True)
        return guided


SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "euler": lambda: diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
}


def toy(habits=None, scheduler="ddim", seed=0):
    """The pipeline, without a progress bar."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = ToyPipeline(ToyNet(), SCHEDULERS[scheduler](), habits)
    pipe.set_progress_bar_config(disable=True)
    return pipe
