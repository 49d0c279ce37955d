"""The commands on layouts: samples of any prompt, a run and its report, recipes on a user's own data."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pgraft_fast
from pgraft_fast.cli import main
from pgraft_fast.commands.config import read_toml
from pgraft_fast.tasks.layouts.conditions import condition_of, element_mask
from pgraft_fast.tasks.layouts.elements import unpack

CONFIG = Path(pgraft_fast.__file__).parent / "configs" / "layouts.toml"


def drawn(tmp_path, *options):
    out = tmp_path / "x.safetensors"
    assert main(["sample", *options, "--n", "3", "--steps", "3", "--out", str(out)]) == 0
    return load_file(out)["samples"]


def test_samples_of_a_prompt_that_is_in_no_list(tmp_path, capsys):
    prompt = "figure at 0.25 0.5 0.125 0.25, title, 3 elements"
    samples = drawn(tmp_path, "layouts", "--prompt", prompt)
    labels, boxes = unpack(samples, torch.full((3,), 5))
    assert (labels[:, :2] == torch.tensor([4, 1])).all()
    torch.testing.assert_close(boxes[:, 0], torch.tensor([0.25, 0.5, 0.125, 0.25]).expand(3, 4), rtol=0, atol=1e-5)
    padding = samples.where(~element_mask(condition_of([prompt]))[..., None], 0.0)
    assert float(padding.abs().max()) < 1e-5
    assert main(["sample", "layouts", "--prompt", "3 cats", "--out", str(tmp_path / "x.png")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "layout '3 cats' cannot be read" in line and "for example" in line


def test_pictures(tmp_path):
    assert main(["sample", "layouts", "--n", "2", "--steps", "2", "--out", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_a_run_and_its_samples(tmp_path, capsys):
    """Of the shipped config, smaller: a reward of one's own, a report, the tuned model's samples."""
    (tmp_path / "mine.py").write_text("def titles(boxes, labels):\n    return (labels == 1).sum(dim=1).float()\n")
    text = CONFIG.read_text()
    for old, new in (
        ('"runs/layouts"', f'"{tmp_path}/run"'),
        ('reward = "tidy"', 'reward = "mine.py:titles"'),
        ("prompts = 128", "prompts = 8"),
        ("candidates = 16", "candidates = 4"),
        ("steps = 25", "steps = 4"),
        ("steps = 120", "steps = 3"),
        ("batch_size = 64", "batch_size = 8"),
        ("threshold = -0.8", "threshold = 1.0"),
        ("samples = 512", "samples = 64"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "c.toml").write_text(text)
    assert main(["finetune", str(tmp_path / "c.toml"), "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["after"]["measures"].keys() == result["before"]["measures"].keys()
    assert (tmp_path / "run" / "report" / "index.html").exists()
    tuned, base = drawn(tmp_path, str(tmp_path / "run")), drawn(tmp_path, str(tmp_path / "run"), "--base")
    assert tuned.shape == base.shape == (3, 25, 9) and not torch.equal(tuned, base)
    assert read_toml(CONFIG, {})["task"]["name"] == "layouts"


def test_data_of_ones_own_is_for_layouts(tmp_path, capsys):
    for what in ("digits", str(CONFIG.with_name("correct_digits.toml"))):
        assert main(["train-base", what, "--data", "x.json", "--out", str(tmp_path / "w")]) == 2
        assert "--data x.json: " in capsys.readouterr().err.splitlines()[-1]
    assert main(["train-base", "layouts", "--data", str(tmp_path / "none.json"), "--out", str(tmp_path / "w")]) == 2
    assert "none.json: layouts cannot be read" in capsys.readouterr().err.splitlines()[-1]
