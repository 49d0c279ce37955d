"""Folders of pictures as data, and the networks that the configs of such folders name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pgraft_fast
from pgraft_fast.commands.correct_config import read_correct_config
from pgraft_fast.errors import InputError
from pgraft_fast.inverse_noise.networks import make_field
from pgraft_fast.tasks.pictures import Pictures, thumbnail_features, to_pictures


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    for number, name in enumerate(("b/2.png", "1.jpg", "b/0.webp")):
        pixels = np.zeros((12, 8, 3), dtype=np.uint8)
        pixels[2:10] = (80 * number, 100, 255)
        Image.fromarray(pixels).save(tmp_path / name, quality=100, **({"lossless": True} if "webp" in name else {}))
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_pictures_are_cut_square_and_scaled(folder):
    pictures = Pictures.of(folder, 4)
    assert [path.name for path in pictures.paths] == ["1.jpg", "0.webp", "2.png"]
    assert pictures.shape == (3, 4, 4) and len(pictures) == 3
    x = pictures.at(torch.tensor([2, 1]))
    # The middle 8 rows hold one colour.
    for row, red in ((0, 0), (1, 160)):
        wanted = torch.tensor([red, 100, 255]) / 127.5 - 1.0
        assert torch.allclose(x[row], wanted[:, None, None].expand(3, 4, 4))
    assert np.array_equal(to_pictures(x)[0, 0, 0], [0, 100, 255])
    grey = Pictures.of(folder, 4, grey=True)
    assert grey.shape == (1, 4, 4) and grey.at(torch.tensor([0])).shape == (1, 1, 4, 4)
    assert to_pictures(grey.at(torch.tensor([0]))).shape == (1, 4, 4)


def test_noise_is_fresh_in_training_and_fixed_in_draws(folder):
    pictures = Pictures.of(folder, 4, sigma=0.1, seed=3)
    index = torch.tensor([0, 0])
    clean = pictures.at(index)
    first, second = pictures.rows(index, 1), pictures.rows(index, 2)
    assert not torch.equal(first, second) and torch.equal(first, pictures.rows(index, 1))
    assert float((first - clean).std()) == pytest.approx(0.1, rel=0.3)
    # The same picture under other numbers has other noise.
    drawn = pictures.draw(torch.tensor([0, 3]), 7)
    assert torch.equal(drawn, pictures.draw(torch.tensor([0, 3]), 7)) and not torch.equal(drawn[0], drawn[1])


def test_identity_tells_sets_apart(folder):
    before = Pictures.of(folder, 4).identity()
    assert before != Pictures.of(folder, 8).identity()
    (folder / "1.jpg").unlink()
    assert before != Pictures.of(folder, 4).identity()


def test_errors_name_the_file(folder):
    (folder / "broken.png").write_bytes(b"no picture")
    pictures = Pictures.of(folder, 4)
    with pytest.raises(InputError, match=r"broken.png: cannot be read as a picture"):
        pictures.at(torch.arange(len(pictures)))


def test_thumbnails():
    x = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).view(2, 3, 16, 16)
    features = thumbnail_features(x)
    assert features.shape == (2, 192)
    assert float(features[0, 0]) == float(x[0, 0, :2, :2].mean())


@pytest.mark.parametrize("name", ["correct_celeba_hq", "correct_lsun_church"])
def test_networks_have_the_sizes_of_the_paper(name):
    path = Path(pgraft_fast.__file__).parent / "configs" / f"{name}.toml"
    config = read_correct_config(path, {})
    assert config.data.size == 256 and config.data.noise == 1e-3
    for part, wanted in ((config.base, 65e6), (config.corrector, 16e6)):
        with torch.device("meta"):
            field = make_field((3, 256, 256), part.network.config())
        assert sum(weight.numel() for weight in field.parameters()) == pytest.approx(wanted, rel=0.035)
