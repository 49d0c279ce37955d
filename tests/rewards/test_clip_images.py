"""Preparation of pictures in torch against the one by PIL."""

import json

import pytest
import torch
from reward_models import as_pil, pictures

from pgraft_fast.errors import RewardError
from pgraft_fast.rewards.clip_images import ClipImages
from pgraft_fast.rewards.pixels import to_bytes, to_pil, to_rgb

SIZES = [(64, 64), (20, 20), (24, 24), (30, 60), (60, 30), (33, 47)]


def by_pil(samples, **options):
    transformers = pytest.importorskip("transformers")
    return transformers.CLIPImageProcessor(**options)(as_pil(samples), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(("crop", "resample"), [(24, 3), (24, 2), (30, 3)])
def test_as_by_pil(height, width, smooth, crop, resample, tmp_path):
    samples = pictures(2, height, width) if smooth else torch.randint(0, 256, (2, 3, height, width)) / 127.5 - 1
    options = {"size": {"shortest_edge": 24}, "crop_size": {"height": crop, "width": crop}, "resample": resample}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(options))
    actual, expected = ClipImages.from_folder(tmp_path, 0)(samples), by_pil(samples, **options)
    assert actual.shape == expected.shape
    difference = 255 * (actual - expected).abs() * torch.tensor(ClipImages.std).view(3, 1, 1)
    assert difference.max() <= 1.01
    assert difference.mean() <= 0.07


def test_configs(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    assert ClipImages.from_folder(tmp_path, 8) == ClipImages(8, (8, 8))
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": {"size": {"height": 5, "width": 6}, "do_center_crop": False, "resample": 2}})
    )
    assert ClipImages.from_folder(tmp_path, 8) == ClipImages((5, 6), None, "bilinear")
    file.write_text(json.dumps({"size": 9, "crop_size": 7, "do_resize": True, "do_normalize": False}))
    assert ClipImages.from_folder(tmp_path, 8) == ClipImages(9, (7, 7), mean=(0.0,) * 3, std=(1.0,) * 3)
    file.write_text(json.dumps({"do_resize": False, "do_center_crop": False}))
    assert ClipImages.from_folder(tmp_path, 8)(torch.zeros(1, 3, 5, 4)).shape == (1, 3, 5, 4)
    for text in ('{"resample": 7}', "not json"):
        file.write_text(text)
        with pytest.raises(RewardError, match=r"preprocessor_config\.json: is no image processor's config"):
            ClipImages.from_folder(tmp_path, 8)


def test_pixels():
    samples = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5)
    assert to_bytes(samples).ravel().tolist() == [0, 0, 128, 255, 255]
    assert to_rgb(samples).shape == (1, 3, 1, 5)
    assert torch.isnan(to_rgb(torch.full((1, 3, 1, 1), torch.nan))).all()
    assert [p.size for p in to_pil(samples)] == [(5, 1)]
    samples = pictures(1)
    assert torch.equal(to_rgb(samples.half()), (to_rgb(samples.half()) * 255).round() / 255)
    for shape in [(1, 4, 2, 2), (3, 2, 2)]:
        with pytest.raises(RewardError, match="are no pictures"):
            to_rgb(torch.zeros(shape))
