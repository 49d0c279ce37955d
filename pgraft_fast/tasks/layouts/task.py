"""The layouts task: shipped models, prompts of three kinds, rewards, figures."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from pgraft_fast.finetune import Prompts
from pgraft_fast.finetune.identity import sha256_of_tensors
from pgraft_fast.schema import Name, Settings
from pgraft_fast.tasks.base import Task
from pgraft_fast.tasks.layouts import metrics, rewards
from pgraft_fast.tasks.layouts.comparison import max_iou
from pgraft_fast.tasks.layouts.conditions import condition_from, condition_of, counts_of, element_mask, prompt_texts
from pgraft_fast.tasks.layouts.data import load_parts
from pgraft_fast.tasks.layouts.elements import MAX_ELEMENTS, Layouts, pack, same, unpack
from pgraft_fast.tasks.layouts.features import LayoutEncoder, features_of, layout_features
from pgraft_fast.tasks.layouts.network import LayoutsDiT
from pgraft_fast.tasks.layouts.pictures import layout_pictures
from pgraft_fast.tasks.layouts.variants import VARIANTS, WEIGHTS
from pgraft_fast.tasks.sets import device_of, spread
from pgraft_fast.tasks.weights import load_weights

REWARDS = {
    "tidy": rewards.tidy,
    "alignment": rewards.alignment,
    "overlap": rewards.overlap,
    "inside": rewards.inside,
}
# Of each part; of features of the data; of pages that samples are compared with.
_PROMPTS, _FEATURES, _COMPARED = 1_000, 20_000, 1_000


class LayoutsSettings(Settings):
    """[task] of a run on layouts.

    variant: the variance-preserving or the flow model. prompts: by the "number" of elements, as often as in the data;
    by the "labels" of its pages; "completion" of some of their elements, given with label and box. reward: tidy,
    alignment, overlap, inside, or file.py:function of (boxes, labels), see `of_layouts`. weights: a folder made by
    `train-base` in place of the shipped one. data: see `load_parts`. n_max: of elements. device: of the model; "auto"
    is CUDA where there is some.
    """

    name: Literal["layouts"] = "layouts"
    variant: Literal["vp", "flow"] = "vp"
    prompts: Literal["number", "labels", "completion"] = "number"
    reward: Name = "tidy"
    weights: Name | None = None
    data: Name | None = None
    n_max: Annotated[int, Field(ge=1, le=MAX_ELEMENTS)] = MAX_ELEMENTS
    device: Literal["cpu", "cuda", "auto"] = "cpu"


def layouts_task(settings: LayoutsSettings) -> Task:
    """Load models and data. Raises CheckpointError for missing or damaged weights, InputError for data."""
    folder = WEIGHTS if settings.weights is None else Path(settings.weights)
    train, held_out = load_parts(settings.data, settings.n_max)
    names, n_labels = train.names, len(train.names)
    variant = VARIANTS[settings.variant]
    model, model_hash = load_weights(LayoutsDiT(variant, n_labels), folder / f"{settings.variant}.safetensors")
    device = device_of(settings.device)
    # On CUDA a trial tells, see `runs.mode`.
    model.attention = "packed" if device == "cpu" else "padded"
    encoder, encoder_hash = load_weights(LayoutEncoder(n_labels), folder / "features.safetensors")
    conditions = partial(condition_of, names=names, n_max=settings.n_max)
    compared = held_out.rows(torch.arange(min(_COMPARED, len(held_out))))
    encoded = train.rows(torch.arange(min(_FEATURES, len(train))))
    return Task(
        name="layouts",
        model=model.to(device),
        schedule=variant.schedule,
        parameterization=variant.parameterization,
        shape=(settings.n_max, 4 + n_labels),
        prompts=_prompts(train, settings.prompts, conditions, seed=0),
        held_out=_prompts(held_out, settings.prompts, conditions, seed=1),
        rewards={name: partial(_of_samples, function, conditions) for name, function in REWARDS.items()},
        own_reward=lambda function: partial(_of_samples, partial(of_layouts, function), conditions),
        features=partial(_features, encoder),
        data=features_of(encoder, encoded),
        pictures=partial(layout_pictures, names=names),
        measures=partial(_measures, compared),
        measures_of_data=partial(_measures_of_data, train.rows(torch.arange(min(_COMPARED, len(train)))), compared),
        condition_of=conditions,
        identity={
            "model_sha256": model_hash,
            "features_sha256": encoder_hash,
            "data_sha256": sha256_of_tensors({"labels": train.labels, "boxes": train.boxes}),
        },
    )


def of_layouts(function: Callable[[Tensor, Tensor], object], samples: Tensor, count: Tensor) -> object:
    """A user's function(boxes, labels) -> (B,), higher is better.

    boxes: (B, N, 4) float32, centre x, centre y, width, height as shares of the page. labels: (B, N) int64, numbers in
    the data's label set, -1 where there is no element (the box is 0 there); elements come first.
    """
    labels, boxes = unpack(samples, count)
    return function(boxes, labels)


def _of_samples(
    function: Callable[[Tensor, Tensor], object],
    conditions: Callable[[Sequence[str]], Tensor],
    samples: Tensor,
    prompts: Sequence[str],
) -> object:
    """A reward of samples and numbers of elements, as one of samples and prompts."""
    return function(samples, counts_of(conditions(prompts)).to(samples.device))


def _prompts(layouts: Layouts, kind: str, conditions: Callable[[Sequence[str]], Tensor], seed: int) -> Prompts:
    texts = prompt_texts(layouts, kind, _PROMPTS, seed)
    texts = [texts[place] for place in spread(len(texts)).tolist()]
    return Prompts(texts, conditions(texts), elements=element_mask, same=_same)


def _features(encoder: LayoutEncoder, samples: Tensor, condition: Tensor | None) -> Tensor:
    assert condition is not None
    return layout_features(encoder, samples.cpu(), condition.cpu())


def _same(samples: Tensor, condition: Tensor | None) -> Tensor:
    assert condition is not None
    return same(samples, counts_of(condition))


def _measures(data: Layouts, samples: Tensor, condition: Tensor | None) -> dict[str, float]:
    """Means over samples; maxIoU beside held-out pages. distinct: different layouts, as a share of the samples."""
    assert condition is not None
    labels, boxes = unpack(samples, counts_of(condition))
    finite = boxes.isfinite().flatten(1).all(dim=1)
    scores = max_iou(labels[finite], boxes[finite], data.labels, data.boxes)
    return {
        "alignment x100": float(metrics.alignment(labels, boxes).nanmean()),
        "overlap x100": 100.0 * float(metrics.overlap(labels, boxes).nanmean()),
        "inside": float(metrics.inside(labels, boxes).nanmean()),
        "maxIoU": float(scores.mean()),
        "distinct": _same(samples, condition).unique().numel() / max(1, len(samples)),
    }


def _measures_of_data(pages: Layouts, data: Layouts) -> dict[str, float]:
    """Of real pages, beside the same held-out ones."""
    untold = torch.zeros_like(pages.labels, dtype=torch.bool)
    condition = condition_from(pages.labels, pages.boxes, untold, untold, len(pages.names))
    samples = pack(pages.labels, pages.boxes, len(pages.names), pages.labels.shape[1])
    return _measures(data, samples, condition)
