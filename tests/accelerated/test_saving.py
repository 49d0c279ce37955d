"""An accelerated pipeline is of its class in everything: saved, copied, pickled, taken apart."""

import copy
import inspect
import io
import json
import pickle

import diffusers
import pytest
import torch
from accelerated.calls import call, off, taken_over
from pipelines import build
from repeats import repeats

from pgraft_fast import accelerate, load_adapter, restore, schedulers

LIMIT = 1e-5
EXTRA = {"sd": {"requires_safety_checker": False}, "sdxl": {"add_watermarker": False}}
# This one has no third encoder, and has to be told so.
LOADED = {"sd3": {"text_encoder_3": None, "tokenizer_3": None}}


def dropped_in(pipe):
    fast = getattr(schedulers, f"Fast{type(pipe.scheduler).__name__}")
    pipe.scheduler = fast.from_config(pipe.scheduler.config)
    return pipe


def rebuilt(pipe, name):
    return type(pipe)(**pipe.components, **EXTRA.get(name, {}))


def of_its_own_class(pipe):
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return pipe


WAYS = {
    "accelerated": lambda pipe, name: accelerate(pipe),
    "dropped in": lambda pipe, name: dropped_in(pipe),
    "components": lambda pipe, name: rebuilt(accelerate(pipe), name),
    "dropped-in components": lambda pipe, name: rebuilt(dropped_in(pipe), name),
    "from_pipe": lambda pipe, name: type(pipe).from_pipe(accelerate(pipe)),
    "class of the scheduler": lambda pipe, name: of_its_own_class(accelerate(pipe)),
    "deepcopy": lambda pipe, name: rebuilt(copy.deepcopy(accelerate(pipe)), name),
}


# Every way, and every pipeline.
SAVED = [*(("sd", way) for way in WAYS), ("flux", "components"), ("ddpm", "accelerated"), ("ddpm", "dropped in")]
OTHERS = [(name, way) for name in ("flux", "ddpm", "sdxl", "pixart") for way in WAYS if (name, way) not in SAVED]


@pytest.mark.parametrize(("name", "way"), [*SAVED, *repeats(*OTHERS)])
def test_saved_folders_name_diffusers(name, way, tmp_path):
    pipe = build(name)
    pipe.save_pretrained(tmp_path / "plain")
    want, original = call(pipe, name), type(pipe.scheduler)
    saved = WAYS[way](pipe, name)
    saved.set_progress_bar_config(disable=True)
    assert off(call(saved, name), want) < LIMIT
    saved.save_pretrained(tmp_path / "saved")
    index, plain = (json.loads((tmp_path / kind / "model_index.json").read_text()) for kind in ("saved", "plain"))
    assert index == plain and index["scheduler"] == ["diffusers", original.__name__]
    config = json.loads((tmp_path / "saved" / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == original.__name__
    for loader in (type(pipe), diffusers.DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path / "saved")
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded.scheduler) is original and off(call(loaded, name), want) < LIMIT


@pytest.mark.parametrize("name", ["ddpm", "sd", "sd3", "flux", *repeats("ddim", "sdxl", "pixart", "sana")])
def test_the_class_of_an_accelerated_pipeline(name, tmp_path):
    pipe = build(name)
    cls, want = type(pipe), call(pipe, name)
    accelerate(pipe)
    call(pipe, name)
    assert type(pipe) is cls is getattr(diffusers, cls.__name__)
    pipe.save_pretrained(tmp_path)
    again = rebuilt(pipe, name), cls.from_pretrained(tmp_path, **LOADED.get(name, {})), cls.from_pipe(pipe)
    for other in again:
        other.set_progress_bar_config(disable=True)
        assert type(other) is cls and off(call(other, name), want) < LIMIT
    # transformers' encoders cannot be pickled once they were called, in plain diffusers neither.
    fresh = accelerate(build(name))
    for other in (pickled(fresh), torch_saved(fresh), copy.deepcopy(pipe)):
        assert type(other) is cls and off(call(other, name), want) < LIMIT
        assert off(call(accelerate(other), name), want) < LIMIT and taken_over(other)
        restore(other)
    assert off(call(pipe, name), want) < LIMIT and taken_over(pipe)


def test_the_class_is_as_before_when_its_last_pipeline_is_restored():
    base = diffusers.StableDiffusionPipeline
    own = vars(base)["__call__"]
    while hasattr(own, "_pgraft_fast_original"):
        own = own._pgraft_fast_original
    cls = type(base.__name__, (base,), {"__call__": own, "__module__": base.__module__})
    pipes = [cls(**build("sd").components, requires_safety_checker=False) for _ in range(2)]
    for pipe in pipes:
        accelerate(pipe)
        call(pipe, "sd")
        assert taken_over(pipe) and cls.__call__ is not own
        assert cls.__call__.__wrapped__ is own.__wrapped__ and inspect.signature(cls.__call__) == inspect.signature(own)
    restore(pipes[0])
    assert off(call(pipes[0], "sd"), call(pipes[1], "sd")) < LIMIT
    restore(pipes[1])
    assert cls.__call__ is own


def pickled(pipe):
    return pickle.loads(pickle.dumps(pipe))


def torch_saved(pipe):
    file = io.BytesIO()
    torch.save(pipe, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_a_copy_of_an_accelerated_pipeline_is_accelerated():
    pipe = accelerate(build("sd"))
    want = call(pipe, "sd")
    twin = copy.deepcopy(pipe)
    with torch.no_grad():
        for weight in twin.unet.parameters():
            weight.mul_(1.1)
    twin.scheduler.register_to_config(prediction_type="v_prediction")
    assert off(call(pipe, "sd"), want) == 0.0 and off(call(twin, "sd"), want) > 1e-3
    assert taken_over(twin)
    restore(twin)
    assert type(twin.scheduler) is diffusers.DDIMScheduler
    assert twin.scheduler.config.prediction_type == "v_prediction"
    assert off(call(pipe, "sd"), want) == 0.0 and taken_over(pipe)


@pytest.mark.parametrize(
    ("copied", "fast"),
    [
        (copy.deepcopy, True), (pickled, True), (torch_saved, True), (copy.deepcopy, False),
        *repeats((pickled, False), (torch_saved, False)),
    ],
)  # fmt: skip
def test_a_loaded_adapter(copied, fast, made):
    """The handover goes along with a copy."""
    saved = made("sd")
    pipe = load_adapter(copy.deepcopy(saved.pipe), saved.folder)
    if fast:
        accelerate(pipe)
    assert type(pipe) is diffusers.StableDiffusionPipeline
    twin = copied(pipe)
    assert type(twin) is diffusers.StableDiffusionPipeline
    assert off(saved.draw(twin), saved.want) < LIMIT
    assert off(saved.draw(pipe), saved.want) < LIMIT


def test_a_class_with_a_call_of_its_own():
    """It calls that of its base; both classes have accelerated pipelines."""

    class Mine(diffusers.StableDiffusionPipeline):
        def __call__(self, prompt, **options):
            return super().__call__(f"{prompt}, red", **options)

    pipe, mine = build("sd"), Mine(**build("sd").components, requires_safety_checker=False)
    mine.set_progress_bar_config(disable=True)
    want = [call(pipe, "sd"), call(mine, "sd")]
    accelerate(pipe), accelerate(mine)
    for _ in range(2):
        assert [
            off(call(*arguments), right) < LIMIT
            for arguments, right in zip([(pipe, "sd"), (mine, "sd")], want, strict=True)
        ]
    assert off(want[0], want[1]) > 1e-3
