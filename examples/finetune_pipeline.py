"""Fine-tune a diffusers pipeline towards a score of your own, and draw with the result.

python examples/finetune_pipeline.py FOLDER [GPU_HOURS]: a pipeline's folder, any with a denoising loop.
"""

import sys

import numpy as np
from diffusers import DiffusionPipeline

import pgraft_fast as pf


def warmth(pictures: list[np.ndarray], prompts: list[str]) -> list[float]:
    """More red than blue: (H, W, 3) uint8 each, one number a picture, higher is better."""
    return [float(picture[..., 0].mean() - picture[..., 2].mean()) for picture in pictures]


def main(folder: str, gpu_hours: float = 2.0, run: str = "runs/warm", **options: object) -> pf.Result:
    pipe = DiffusionPipeline.from_pretrained(folder)
    trainer = pf.PGraftTrainer(
        pipe,
        reward=warmth,
        prompts=["a house by the sea", "a bowl of fruit", "a city at night", "a forest in autumn"],
        config=pf.PGraftConfig(budget=pf.Budget(gpu_hours=gpu_hours), run=run, **options),
    )
    result = trainer.train()  # a run that was stopped goes on
    print(f"{result.before.reward:.2f} -> {result.after.reward:.2f}, see {result.report}")
    pf.load_adapter(pipe, result.adapter)  # acts above the cut only, in every call
    pipe("a house by the sea").images[0].save(f"{run}/after.png")
    return result


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
