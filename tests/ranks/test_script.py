"""`PGraftTrainer` in a script that torchrun starts, and what runs as one process alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranked

SCRIPT = Path(__file__).with_name("script.py")


@pytest.mark.slow
def test_every_rank_has_the_result_and_one_writes(tmp_path):
    ended = ranked.run(2, [str(SCRIPT), str(tmp_path / "run"), "0"])
    assert [status for status, _, _ in ended] == [0, 0], ended
    first, second = (json.loads(out) for _, out, _ in ended)
    assert first[:4] == second[:4] and first[3] == 2
    assert Path(first[2]).exists() and (tmp_path / "run/report/index.html").exists()
    # Lines and rounds are told once.
    assert first[4] == [1, 2] and second[4] == []
    assert "round 2/2" in ended[0][2] and ended[1][2] == ""
    spent = json.loads((tmp_path / "run/result.json").read_text())["spent"]
    assert first[1] == pytest.approx(2 * spent["total_seconds"] / 3600, rel=1e-6)
    assert "Ranks" in (tmp_path / "run/report/index.html").read_text()


@pytest.mark.slow
def test_different_models_on_two_ranks(tmp_path):
    """Weights that were drawn without a common seed."""
    port = ranked.free_port()
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path / "run"), str(rank)], env=ranked.environment(rank, 2, port),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert all("was given other values" in text and "'model'" in text for text in errors), errors


def test_one_process_alone():
    for command in ("demo", "bench ops", "plan a.toml", "train-base digits"):
        ended = subprocess.run(
            [sys.executable, "-m", "pgraft_fast", *command.split()], capture_output=True, text=True, check=False,
            env={**os.environ, "WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        )  # fmt: skip
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"pgraft-fast: {command.split()[0]}") and "one process makes it" in ended.stderr
