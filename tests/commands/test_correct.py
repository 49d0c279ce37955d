"""Inverse noise correction from the command line: each stage, all of them, wrong input, killed processes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pgraft_fast.cli import main

pytestmark = pytest.mark.slow

DIGITS = """
run = "{run}"
[generator]
steps = 3
[invert]
samples = 96
shard = 16
[corrector]
interpolants = ["trigonometric", "affine"]
integration_steps = 2
steps = {steps}
batch_size = 32
check_every = 20
save_every = 20
[evaluate]
samples = 64
base_steps = [3, 6]
splits = [[3, 2]]
"""
PICTURES = """
run = "run"
device = "cpu"
[data]
kind = "pictures"
folder = "pictures"
size = 8
[base]
network = { kind = "unet", channels = [4, 8], attention = [4], layers = 1 }
steps = 6
batch_size = 4
learning_rate = 1e-4
[generator]
steps = 4
[invert]
samples = 24
shard = 8
[corrector]
network = { kind = "unet", channels = [4, 8], attention = [], layers = 1 }
interpolants = ["trigonometric", "linear"]
integration_steps = 2
steps = 6
batch_size = 4
held_out = 0.25
check_every = 3
[evaluate]
samples = 24
batch_size = 8
base_steps = [3, 4]
splits = [[4, 1], [4, 2]]
"""


def digits_config(folder: Path, steps: int = 40, more: str = "") -> Path:
    path = folder / "digits.toml"
    path.write_text(more + DIGITS.format(run=folder / "run", steps=steps))
    return path


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of pictures drawn here, and its config."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures" / "inner"
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for number in range(12):
        pixels = np.full((20, 24, 3), draws.integers(0, 128), dtype=np.uint8)
        low = draws.integers(2, 10)
        pixels[low : low + 8, low : low + 8] = draws.integers(128, 255, 3)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    config = tmp_path / "pictures.toml"
    config.write_text(PICTURES)
    return config


def one_line(capsys) -> str:
    """The last line of stderr, which tells what is wrong."""
    errors = capsys.readouterr().err.strip().splitlines()
    assert sum(line.startswith("pgraft-fast: ") for line in errors) == 1
    return errors[-1]


def test_digits_end_to_end(tmp_path, browse):
    config = digits_config(tmp_path)
    assert main(["correct", str(config), "--json", str(tmp_path / "result.json")]) == 0
    result, run = json.loads((tmp_path / "result.json").read_text()), tmp_path / "run"
    rows = {(row["name"], row["base_steps"], row["corrector_steps"]): row for row in result["rows"]}
    assert set(rows) == {("base", 3, 0), ("base", 6, 0), ("trigonometric", 3, 2), ("affine", 3, 1)}
    base, corrected = rows["base", 3, 0], rows["trigonometric", 3, 2]
    # 2 (96 256 + 2 256 256 + 256 64) operations a call of this perceptron, counted.
    assert base["flops_per_image"] == 3 * 2 * (96 * 256 + 2 * 256**2 + 256 * 64)
    assert corrected["flops_per_image"] == pytest.approx(base["flops_per_image"] * 5 / 3)
    assert all(row["fd"] > 0 and row["swd"] > 0 and row["nearest"] > 0 for row in result["rows"])
    assert result["inversion"]["samples"] == 96 and result["inversion"]["failed"] == 0
    assert result["inversion"]["worst_round_trip"] < 1e-5
    assert set(result["seconds"]) == {"train-base", "invert", "fit-corrector", "evaluate"}
    assert {path.name for path in run.iterdir()} >= {"base.safetensors", "corrector-affine", "inverse", "report"}
    page = run / "report" / "index.html"
    browse(page, page.read_text().count("<img"))


def test_pictures_stage_by_stage(pictures, capsys):
    run = pictures.parent / "run"
    for stage, wanted in (("invert", "no base"), ("fit-corrector", "no inversion"), ("evaluate", "no inversion")):
        assert main([stage, str(pictures)]) == 2
        assert wanted in one_line(capsys)
    assert main(["train-base", str(pictures)]) == 0
    base = (run / "base.safetensors").read_bytes()
    assert main(["fit-corrector", str(pictures)]) == 2
    assert "run `pgraft-fast invert` with this config" in one_line(capsys)
    assert main(["invert", str(pictures), "--json", str(pictures.parent / "told.json")]) == 0
    report = json.loads((pictures.parent / "told.json").read_text())
    assert report["samples"] == 24 and report["failed"] == 0 and report["calls_per_sample"] > 10
    assert main(["evaluate", str(pictures)]) == 2
    assert "run `pgraft-fast fit-corrector` with this config" in one_line(capsys)
    assert main(["fit-corrector", str(pictures)]) == 0
    assert main(["evaluate", str(pictures)]) == 0
    result = json.loads((run / "result.json").read_text())
    assert {row["name"] for row in result["rows"]} == {"base", "trigonometric", "linear"}
    # All again changes nothing: each stage finds its work done.
    assert main(["correct", str(pictures)]) == 0
    again = json.loads((run / "result.json").read_text())
    assert again["rows"] == result["rows"] and (run / "base.safetensors").read_bytes() == base


def test_a_base_of_digits_trained_anew(tmp_path):
    more = "[data]\nshipped_base = false\n[base]\nsteps = 5\nbatch_size = 16\n"
    config = digits_config(tmp_path)
    config.write_text(config.read_text() + more)
    assert main(["train-base", str(config)]) == 0
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    assert main(["train-base", str(digits_config(shipped))]) == 0
    assert (tmp_path / "run/base.safetensors").read_bytes() != (shipped / "run/base.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('device = "cuda:99"\n', r"device='cuda:99' cannot be used .*; set device='auto'"),
        ('device = "tpu?"\n', r"device='tpu\?' cannot be used"),
        ('[data]\nkind = "pictures"\n', r"data.folder is missing: pictures need one"),
        ('[data]\nkind = "pictures"\nfolder = "none"\n', r"none: no such folder of pictures; download them"),
        ('[data]\nkind = "pictures"\nfolder = "."\n', r": no picture in it \(\.png"),
        ('[base]\nprecision = "fp8"\n', r"base.precision = 'fp8': input should be 'fp32' or 'bf16'"),
        ("seed = -1\n", r"seed = -1: "),
        ("sed = 1\n", r"sed is unknown; did you mean seed\?"),
    ],
)
def test_wrong_configs(tmp_path, capsys, more, message):
    head, _, table = more.partition("[")
    config = digits_config(tmp_path, more=head)
    config.write_text(config.read_text() + (f"[{table}" if table else ""))
    assert main(["correct", str(config)]) == 2
    assert re.search(message, one_line(capsys))


def test_wrong_split_and_wrong_networks(tmp_path, pictures, capsys):
    config = digits_config(tmp_path)
    config.write_text(config.read_text().replace("[[3, 2]]", "[[3, 2, 1]]"))
    assert main(["correct", str(config)]) == 2
    assert "each is [steps of the base, steps of the corrector]" in one_line(capsys)
    pictures.write_text(PICTURES.replace("size = 8", "size = 15"))
    assert main(["train-base", str(pictures)]) == 2
    assert "a UNet needs (C, H, H) with H a multiple of 2" in one_line(capsys)


def start(stage: str, config: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "pgraft_fast.cli", stage, str(config)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Folder of a run of the first three stages that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = long_config(folder)
    for stage in ("train-base", "invert", "fit-corrector"):
        finish(stage, config)
    return folder / "run"


def finish(stage: str, config: Path) -> None:
    """In this process, with the one thread of the processes that are killed: the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main([stage, str(config)]) == 0
    finally:
        torch.set_num_threads(threads)


def long_config(folder: Path) -> Path:
    config = digits_config(folder, steps=160)
    config.write_text(config.read_text().replace("samples = 96", "samples = 256"))
    return config


def killed(stage: str, config: Path, begun: Path, count: int, seed: int) -> None:
    """Start, kill once `count` entries lie in `begun`, a drawn moment later."""
    process = start(stage, config)
    while sum(1 for _ in begun.glob("[sr]*-*")) < count:
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(0.03 * random.Random(seed).random())
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL


@pytest.mark.faults
@pytest.mark.parametrize("seed", [1])
def test_killed_inversions_and_fits_end_with_the_same_bytes(tmp_path, undisturbed, seed):
    config, run = long_config(tmp_path), tmp_path / "run"
    assert main(["train-base", str(config)]) == 0
    killed("invert", config, run / "inverse", 2 + 5 * seed, seed)
    finish("invert", config)
    assert contents(run / "inverse") == contents(undisturbed / "inverse")
    killed("fit-corrector", config, run / "fit-trigonometric", 1 + seed, seed)
    finish("fit-corrector", config)
    for kind in ("trigonometric", "affine"):
        assert contents(run / f"corrector-{kind}") == contents(undisturbed / f"corrector-{kind}")
