"""All pipelines that the tests build, with what a run is asked for of each."""

import pipelines
import zoo

# One denoiser or two, pictures, video or audio, with a picture to start from or without.
NAMES = (*pipelines.NAMES, *zoo.NAMES)
REFUSED = ("sd_inpaint_plain",)
SERVED = tuple(name for name in NAMES if name not in REFUSED)
# What a run sets itself.
_SET = ("prompt", "class_labels", "num_inference_steps", "generator", "guidance_scale", "true_cfg_scale", "output_type")


def build(name, seed=0):
    """The pipeline."""
    return pipelines.build(name, seed=seed) if name in pipelines.NAMES else zoo.build(name, seed)


def call_of(name):
    """`call` of a run."""
    found = (pipelines if name in pipelines.NAMES else zoo).call_arguments(name)
    return {key: value for key, value in found.items() if key not in _SET}


def prompts_of(name):
    """Prompts, or classes."""
    return [0, 1, 2] if name == "dit" else ["a red cube", "two cats", "a dog"]
