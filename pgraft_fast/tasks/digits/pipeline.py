"""The shipped digits model as a diffusers pipeline."""

from typing import Any

import torch
from diffusers import ConfigMixin, DDIMPipeline, DDIMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from pgraft_fast.tasks.digits.data import SHAPE
from pgraft_fast.tasks.digits.task import DigitsSettings, digits_task

TRAIN_STEPS = 1000
# diffusers wants every beta below 1.
_LARGEST_BETA = 0.999


class DigitsUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The digits network with the call of diffusers' UNet2DModel: (sample, timestep) -> output.sample."""

    @register_to_config
    def __init__(self, sample_size: int = SHAPE[-1], in_channels: int = SHAPE[0], out_channels: int = SHAPE[0]) -> None:
        super().__init__()
        self.net: nn.Module = nn.Identity()

    def forward(self, sample: Tensor, timestep: Any, return_dict: bool = True) -> UNet2DOutput | tuple[Tensor]:
        """sample: (B, 1, 8, 8). timestep: 0 ... 999, one or (B,)."""
        t = (torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0]) + 1).to(sample.dtype) / TRAIN_STEPS
        out = self.net(sample, t)
        return UNet2DOutput(sample=out) if return_dict else (out,)


def digits_pipeline() -> DDIMPipeline:
    """Unconditional digits: the shipped variance-preserving model at times (k + 1) / 1000, under DDIM."""
    task = digits_task(DigitsSettings(variant="vp", conditional=False))
    times = torch.arange(1, TRAIN_STEPS + 1, dtype=torch.float64) / TRAIN_STEPS
    alpha_2 = task.schedule.alpha(times).square()
    before = torch.cat((torch.ones(1, dtype=torch.float64), alpha_2[:-1]))
    betas = (1.0 - alpha_2 / before).clamp(max=_LARGEST_BETA)
    unet = DigitsUNet()
    unet.net = task.model
    kinds = {"epsilon": "epsilon", "v": "v_prediction", "x_0": "sample"}
    scheduler = DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        trained_betas=betas.tolist(),
        prediction_type=kinds[task.parameterization],
        clip_sample=False,
    )
    return DDIMPipeline(unet=unet.eval(), scheduler=scheduler)
