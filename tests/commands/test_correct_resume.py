"""Stages of `correct` go on, and take each other's results, only where data, base and settings are the same."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from pgraft_fast.cli import main
from pgraft_fast.errors import InputError
from pgraft_fast.inverse_noise import FitSettings, Interpolant, Rows, fit_field, invert_shards
from pgraft_fast.inverse_noise.networks import make_field

pytestmark = pytest.mark.slow

CONFIG = """
run = "{folder}/run"
device = "cpu"
[data]
kind = "pictures"
folder = "{folder}/pictures"
size = 8
[base]
network = {{ kind = "perceptron", width = 8, depth = 1 }}
steps = 4
batch_size = 4
learning_rate = 1e-4
[generator]
steps = 10
[invert]
samples = 24
shard = 12
[corrector]
network = {{ kind = "perceptron", width = 8, depth = 1 }}
steps = 4
batch_size = 4
held_out = 0.0
[evaluate]
samples = 24
base_steps = [3]
splits = [[10, 1]]
"""


def draw_pictures(folder, seed=0):
    """Twelve of one size in bytes, whatever the seed."""
    draws = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for number in range(12):
        pixels = np.full((16, 16, 3), draws.integers(0, 255), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.bmp")


@pytest.fixture
def done(tmp_path):
    """Config of a run whose stages are all done."""
    draw_pictures(tmp_path / "pictures")
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(folder=tmp_path))
    assert main(["correct", str(path)]) == 0
    return path


def test_changes_between_stages_are_refused_by_name(done, capsys):
    text = done.read_text()
    for stage, old, new, message in (
        ("train-base", "[base]\n", "[base]\nema = 0.5\n", "ema=0.5 differs from 0.995"),
        ("invert", "[base]\n", "[base]\nema = 0.5\n", "training.ema=0.5 differs from 0.995 of the base in"),
        ("fit-corrector", "steps = 10", "steps = 9", "steps=9 differs from 10 of the inversion in"),
        (
            "evaluate",
            "steps = 10",
            "steps = 10\nsolver = 'heun'",
            "solver='heun' differs from 'euler' of the inversion",
        ),
        ("evaluate", "samples = 24\nshard", "samples = 25\nshard", "total=25 differs from 24 of the inversion in"),
        ("fit-corrector", "held_out = 0.0", "held_out = 0.5", "held_out=0.5 differs from 0.0 of the run in"),
        ("evaluate", "held_out = 0.0", "held_out = 0.5", "training.held_out=0.5 differs from 0.0 of the corrector in"),
        (
            "evaluate",
            "[corrector]\n",
            "[corrector]\nintegration_steps = 2\n",
            "integration_steps=2 differs from 5 of the",
        ),
    ):
        assert old in text
        done.write_text(text.replace(old, new, 1))
        capsys.readouterr()
        assert main([stage, str(done)]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("pgraft-fast: ") and message in line, line
    draw_pictures(done.parent / "pictures", seed=1)
    done.write_text(text)
    for stage in ("train-base", "invert", "evaluate"):
        capsys.readouterr()
        assert main([stage, str(done)]) == 2
        assert re.search(r"sha256='[0-9a-f]{12}' differs from '[0-9a-f]{12}' of the", capsys.readouterr().err)


def test_what_may_change(done):
    """Where it lies, how often a fit is saved, how much is evaluated."""
    before = json.loads((done.parent / "run/result.json").read_text())
    text = done.read_text().replace("[base]\n", "[base]\nsave_every = 3\n").replace('device = "cpu"', 'device = "auto"')
    done.write_text(
        text.replace("samples = 24\nbase", "samples = 24\nbatch_size = 7\nbase").replace("pictures", "moved")
    )
    (done.parent / "pictures").rename(done.parent / "moved")
    done.write_text(done.read_text().replace('kind = "moved"', 'kind = "pictures"'))
    assert main(["correct", str(done)]) == 0
    after = json.loads((done.parent / "run/result.json").read_text())
    assert [row["base_steps"] for row in after["rows"]] == [row["base_steps"] for row in before["rows"]]


def test_a_base_without_a_record_is_a_line(done, capsys):
    from safetensors.torch import load_file, save_file

    path = done.parent / "run/base.safetensors"
    save_file(load_file(path), path)
    assert main(["invert", str(done)]) == 2
    assert "was begun by another version" in capsys.readouterr().err


def fit(folder, values, seed=0, start=0):
    torch.manual_seed(start)
    network = make_field((4,), {"kind": "perceptron", "width": 4, "depth": 1})
    settings = FitSettings(steps=4, batch_size=4, save_every=2, seed=seed)
    return fit_field(network, Rows(values), Interpolant("linear"), settings, folder=folder)


def test_a_fit_is_of_its_rows_and_first_weights(tmp_path):
    values = torch.randn(32, 4)
    fit(tmp_path, values)
    fit(tmp_path, values.clone())
    with pytest.raises(InputError, match=r"data.sha256='[0-9a-f]{12}' differs"):
        fit(tmp_path, values.roll(1, 0))
    with pytest.raises(InputError, match=r"first weights='[0-9a-f]{12}' differs"):
        fit(tmp_path, values, start=1)


def test_an_inversion_is_of_its_data_and_model(tmp_path):
    torch.manual_seed(0)
    rows = torch.randn(32, 4)
    model = make_field((4,), {"kind": "perceptron", "width": 4, "depth": 1}).requires_grad_(False)
    invert_shards(model, lambda index: rows[index], 32, tmp_path, shard=16, steps=20)
    with pytest.raises(InputError, match=r"first samples='[0-9a-f]{12}' differs .* of the inversion in"):
        invert_shards(model, lambda index: rows[index] + 1.0, 32, tmp_path, shard=16, steps=20)
    next(model.parameters()).add_(1e-3)
    with pytest.raises(InputError, match=r"model weights='[0-9a-f]{12}' differs"):
        invert_shards(model, lambda index: rows[index], 32, tmp_path, shard=16, steps=20)
