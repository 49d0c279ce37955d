"""Drawn configs of every schema: each is read, or refused in one line that no terminal obeys."""

import random
from pathlib import Path

import pytest
from drawn import config, to_toml

from pgraft_fast.commands.config import RunConfig, read_config
from pgraft_fast.commands.correct_config import CorrectConfig, read_correct_config
from pgraft_fast.commands.pipeline_config import PipelineConfig, read_pipeline_config
from pgraft_fast.errors import InputError

SCHEMAS = {
    "digits": (RunConfig, read_config), "text": (PipelineConfig, read_pipeline_config),
    "correct": (CorrectConfig, read_correct_config),
}  # fmt: skip


def read_drawn(path: Path, kind: str, seeds: range) -> int:
    """How many of the configs are right; the others must be explained in one line."""
    schema, read = SCHEMAS[kind]
    right = 0
    for seed in seeds:
        path.write_text(to_toml(config(random.Random(seed), schema)))
        try:
            read(path, {})
            right += 1
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and str(error).isprintable(), (seed, str(error))
            assert len(str(error)) < 20_000, seed
    return right


@pytest.mark.parametrize("kind", SCHEMAS)
def test_some_configs(tmp_path, kind):
    read_drawn(tmp_path / "config.toml", kind, range(50))


@pytest.mark.faults
@pytest.mark.parametrize("kind", SCHEMAS)
def test_ten_thousand_configs(tmp_path, kind):
    """Of the three together."""
    right = read_drawn(tmp_path / "config.toml", kind, range(1000, 4400))
    print(f"{kind}: {right} of 3400 are right")
    assert 20 < right < 3000


@pytest.mark.parametrize("text", ['[[rewards]]\nkind = "a\\nb"', '"a\\nb" = 1', '[model]\n"a\\u2028b" = 1'])
def test_names_and_values_of_several_lines(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_pipeline_config(path, {})
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value).splitlines()) == 1
