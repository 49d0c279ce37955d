"""Folders of pipelines with weights in variants: what is read, and what is said of it."""

import shutil

import pytest
import torch
from pipelines import build

from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.loading import load_pipeline

CPU = torch.device("cpu")
NAMES = ("sd", "sdxl", "sd3", "flux")


def load(folder, variant=None):
    lines = []
    pipe = load_pipeline(folder, torch.float32, CPU, variant=variant, log=lines.append)
    return pipe, lines


def same(pipe, other) -> bool:
    """Every weight of every part."""
    models = [
        (part, getattr(other, name)) for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)
    ]
    return all(
        torch.equal(weight, loaded.state_dict()[name])
        for part, loaded in models for name, weight in part.state_dict().items()
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_only_variant_is_read(tmp_path, name):
    pipe = build(name)
    pipe.save_pretrained(tmp_path, variant="fp16")
    for variant in (None, "fp16"):
        loaded, lines = load(tmp_path, variant)
        assert same(pipe, loaded)
        assert len(lines) == (variant is None) and all("fp16" in line and "variants are read" in line for line in lines)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_variants_in_shards(tmp_path, name):
    pipe = build(name)
    pipe.save_pretrained(tmp_path, variant="bf16", max_shard_size="20KB")
    assert len(list(tmp_path.glob("*/*.bf16-0000*-of-*.safetensors"))) > 3
    assert same(pipe, load(tmp_path)[0]) and same(pipe, load(tmp_path, "bf16")[0])


def test_plain_files_come_before_variants(tmp_path):
    plain, other = build("sd"), build("sd", seed=1)
    plain.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path, variant="ema")
    loaded, lines = load(tmp_path)
    assert same(plain, loaded) and lines == []
    assert same(other, load(tmp_path, "ema")[0])


def test_parts_of_one_folder_may_differ(tmp_path):
    """Plain and half parts, and two names of variants; a part without the asked one is read plainly."""
    pipe = build("sd")
    pipe.save_pretrained(tmp_path)
    for part, variant in (("unet", "fp16"), ("vae", "bf16")):
        shutil.rmtree(tmp_path / part)
        getattr(pipe, part).save_pretrained(tmp_path / part, variant=variant)
    loaded, lines = load(tmp_path)
    assert same(pipe, loaded) and "unet fp16, vae bf16" in lines[0]
    build("sd", seed=1).text_encoder.save_pretrained(tmp_path / "text_encoder", variant="fp16")
    assert same(pipe, load(tmp_path)[0])
    with pytest.raises(InputError, match=r"vae: neither plain weights nor 'fp16', but bf16: name one of them"):
        load(tmp_path, "fp16")
    pipe.vae.save_pretrained(tmp_path / "vae")
    assert not same(pipe, load(tmp_path, "fp16")[0])


def test_wrong_and_unnamed_variants(tmp_path):
    pipe = build("sd")
    pipe.save_pretrained(tmp_path, variant="fp16")
    pipe.unet.save_pretrained(tmp_path / "unet", variant="non_ema")
    with pytest.raises(
        InputError, match=r"unet: no plain weights, but fp16, non_ema: name one of them as model.variant"
    ):
        load(tmp_path)
    with pytest.raises(InputError, match=r"model.variant = 'fp8': .* has no such weights; its variants: fp16, non_ema"):
        pipe.unet.save_pretrained(tmp_path / "unet")
        for part in ("vae", "text_encoder"):
            getattr(pipe, part).save_pretrained(tmp_path / part)
        load(tmp_path, "fp8")
    assert same(pipe, load(tmp_path, "fp16")[0])
