"""Rewards that the config of a run folder names, which may be anybody's."""

import pytest

from pgraft_fast.commands.config import checked
from pgraft_fast.commands.pipeline_config import PipelineConfig
from pgraft_fast.commands.subjects import check_trusted
from pgraft_fast.errors import InputError


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        ({"kind": "callable", "function": "x.py:f"}, "is code"), ({"kind": "command", "command": "sh -c x"}, "is code"),
        ({"kind": "http", "url": "https://evil.example/"}, "sends samples and prompts to"),
    ],
)  # fmt: skip
def test_rewards_of_a_run_folder_that_want_trust(tmp_path, reward, told):
    values = {"run": "r", "model": {"shipped": "sd"}, "rewards": [{"kind": "jpeg_size"}, reward]}
    with pytest.raises(InputError, match=rf"config.json: rewards.1 {told}.*give --trust"):
        check_trusted(checked(PipelineConfig, values, "c"), tmp_path)
    check_trusted(checked(PipelineConfig, {**values, "rewards": values["rewards"][:1]}, "c"), tmp_path)
