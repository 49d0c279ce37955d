"""Configs: every mistake in one line that names file, key and the nearest valid name."""

import re
from pathlib import Path

import pytest

import pgraft_fast
from pgraft_fast.commands.config import read_config
from pgraft_fast.errors import InputError

SHIPPED = Path(pgraft_fast.__file__).parent / "configs" / "digits.toml"


def test_shipped_config():
    config = read_config(SHIPPED, {})
    assert (config.train.cut, config.select.k, config.sample.candidates) == (0.25, 4, 16)


def test_overrides():
    config = read_config(SHIPPED, {"run": "elsewhere", "task.reward": "stroke_mass", "seed": None})
    assert (config.run, config.task.reward, config.seed) == ("elsewhere", "stroke_mass", 0)


def test_reward_files_are_found_beside_the_config(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('run = "r"\n[task]\nreward = "mine.py:f"\n')
    assert read_config(file, {}).task.reward == f"{tmp_path}/mine.py:f"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run is missing"),
        ('run = "r"\nsede = 1', "sede is unknown; did you mean seed?"),
        ('run = "r"\n[train]\nlearing_rate = 1.0', "train.learing_rate is unknown; did you mean train.learning_rate?"),
        ('run = "r"\n[train]\ncandidates = 4', "train.candidates is unknown; did you mean sample.candidates?"),
        ('run = "r"\n[trian]\ncut = 0.5', "trian is unknown; did you mean train?"),
        ('run = "r"\n[train]\nsteps = "many"', "train.steps = 'many': input should be a valid integer"),
        ('run = "r"\n[train]\nsteps = 1.5', "train.steps = 1.5: input should be a valid integer"),
        ('run = "r"\n[train]\ncut = 1.0', "train.cut = 1.0: input should be less than 1"),
        ('run = "r"\n[train]\ncut = -0.1', "train.cut = -0.1: input should be greater than or equal to 0"),
        ('run = "r"\n[select]\nk = 20', "select.k=20 is more than sample.candidates=16"),
        ('run = "r"\n[select]\nrule = "top_k"', "select.k is missing: rule top_k needs it"),
        ('run = "r"\n[select]\nrule = "topk"', "select.rule = 'topk': input should be 'top_k'"),
        ('run = "r"\n[task]\nname = "cats"', "task.name = 'cats': input should be 'digits'"),
        ('run = "r"\ntask = 3', "task = 3: input should be a valid dictionary"),
        ('run = "r"\n[sample]\nsteps = 0\nsolver = 1', "sample.steps = 0: .*; sample.solver = 1: "),
        ("run = ", "not valid TOML"),
    ],
)
def test_mistakes(tmp_path, text, message):
    file = tmp_path / "c.toml"
    file.write_text(text)
    pattern = message if ".*" in message else re.escape(message)
    with pytest.raises(InputError, match=pattern) as caught:
        read_config(file, {})
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "none.toml", {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not valid TOML"):
        read_config(tmp_path / "binary.toml", {})
