"""Pipelines with a UNet."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline
from pipelines import _sdxl as stable_diffusion_xl

from pgraft_fast_benchmarks.models import SD_BETAS, WIDTH, louder, stable_diffusion, tiny_unet, tiny_vae

from .encoders import chatglm
from .parts import PROMPT, lively, mask, picture


def _parts() -> dict[str, Any]:
    """Of Stable Diffusion, with what says that there is no safety checker."""
    return {**stable_diffusion().components, "requires_safety_checker": False}


def _img2img() -> diffusers.StableDiffusionImg2ImgPipeline:
    return diffusers.StableDiffusionImg2ImgPipeline(**_parts())


def _inpaint() -> diffusers.StableDiffusionInpaintPipeline:
    """The model for it: it reads the latents, the mask and the masked picture, nine channels."""
    unet = louder(tiny_unet((8, 16), WIDTH, in_channels=9), 1.5)
    return diffusers.StableDiffusionInpaintPipeline(**_parts() | {"unet": unet})


def _inpaint_plain() -> diffusers.StableDiffusionInpaintPipeline:
    """A model of four channels: the picture is put back around the mask after every step."""
    return diffusers.StableDiffusionInpaintPipeline(**_parts())


def _controlnet() -> diffusers.StableDiffusionControlNetPipeline:
    controlnet = diffusers.ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(8, 16),
    )
    return diffusers.StableDiffusionControlNetPipeline(**_parts(), controlnet=lively(controlnet, 0.4))


def _sdxl_img2img() -> diffusers.StableDiffusionXLImg2ImgPipeline:
    return diffusers.StableDiffusionXLImg2ImgPipeline(**stable_diffusion_xl().components, add_watermarker=False)


def _animatediff() -> diffusers.AnimateDiffPipeline:
    parts = _parts()
    motion = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=8, motion_num_attention_heads=2
    )
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    return diffusers.AnimateDiffPipeline(
        **{name: parts[name] for name in names}, motion_adapter=lively(motion), feature_extractor=None
    )


def _kolors() -> KolorsPipeline:
    """The class is taken from its file: without sentencepiece, diffusers' is one that says so."""
    text_encoder, tokenizer = chatglm()
    unet = tiny_unet(
        (8, 16),
        WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )
    return KolorsPipeline(
        vae=tiny_vae(scaling_factor=0.13025),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=louder(unet, 1.5),
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **SD_BETAS),
    )


BUILDERS = {
    "sd_img2img": _img2img,
    "sd_inpaint": _inpaint,
    "sd_inpaint_plain": _inpaint_plain,
    "sd_controlnet": _controlnet,
    "sdxl_img2img": _sdxl_img2img,
    "kolors": _kolors,
    "animatediff": _animatediff,
}

ARGUMENTS: dict[str, dict[str, Any]] = {
    "sd_img2img": PROMPT | {"image": picture()},
    "sd_inpaint": PROMPT | {"image": picture(), "mask_image": mask()},
    "sd_inpaint_plain": PROMPT | {"image": picture(), "mask_image": mask()},
    "sd_controlnet": PROMPT | {"image": picture()},
    # Less than one of three steps is left at its default strength, 0.3.
    "sdxl_img2img": PROMPT | {"image": picture(), "strength": 0.8},
    "kolors": PROMPT | {"max_sequence_length": 32},
    "animatediff": PROMPT | {"num_frames": 4},
}
