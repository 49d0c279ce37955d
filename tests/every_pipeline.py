"""All pipelines that the tests build, with what a run is asked for of each."""

import pipelines
import pytest
import zoo

# One denoiser or two, pictures, video or audio, with a picture to start from or without.
NAMES = (*pipelines.NAMES, *zoo.NAMES)
REFUSED = ("sd_inpaint_plain",)
SERVED = tuple(name for name in NAMES if name not in REFUSED)
# Each way of calling a denoiser once; others are repeats, for `make test-faults`.
_ONE_EACH = (
    "ddim", "sdxl", "sd3", "flux", "sana", "sd_img2img", "sd_inpaint", "sd_controlnet", "animatediff", "dit", "chroma",
    "hidream", "qwen_image", "z_image", "cogview4", "wan", "wan22", "ltx", "stable_audio", "audioldm2",
)  # fmt: skip
CASES = [name if name in _ONE_EACH else pytest.param(name, marks=pytest.mark.faults) for name in SERVED]
# What a run sets itself.
_SET = ("prompt", "class_labels", "num_inference_steps", "generator", "guidance_scale", "true_cfg_scale", "output_type")


def build(name, seed=0):
    """The pipeline, whose scheduler does not cut x_0 off."""
    pipe = pipelines.build(name, seed=seed) if name in pipelines.NAMES else zoo.build(name, seed)
    if pipe.scheduler.config.get("clip_sample"):
        pipe.scheduler.register_to_config(clip_sample=False)
    return pipe


def call_of(name):
    """`call` of a run."""
    arguments = (pipelines if name in pipelines.NAMES else zoo).call_arguments(name)
    return {key: value for key, value in arguments.items() if key not in _SET}


def prompts_of(name):
    """Prompts, or classes."""
    return [0, 1, 2] if name == "dit" else ["a red cube", "two cats", "a dog"]
