"""The scaling benchmark at its smallest: rows in pairs, red where the model is off."""

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from pgraft_fast_benchmarks import scaling
from pgraft_fast_benchmarks.harness import Settings

pytestmark = pytest.mark.slow


def test_rows_come_in_pairs():
    names = []
    rows = scaling.run(Settings(torch.device("cpu"), size="smoke"), lambda name, part_rows: names.append(name))["rows"]
    assert names == ["candidates", "steps"]
    assert [row["provider"] for row in rows] == ["measured", "model"] * 2
    assert all(row["p50_ms"] > 0 for row in rows)


def test_a_model_that_is_off_is_red():
    fine = scaling._rows("steps", 10, 1.0, 1.14)
    assert [row["gate"] for row in fine] == ["ok", "ok"] and fine[1]["model_error"] == 0.14
    off = scaling._rows("steps", 10, 1.0, 0.8)
    assert off[1]["gate"] == "fail" and off[1]["note"] == "-20 % of the measured time"


def test_ranks_share_the_prompts():
    """Two processes of a thread each answer, each with its own seconds."""
    durations = scaling._in_processes(2, 1, probing=False)
    assert len(durations) == 2 and all(seconds > 0 for seconds in durations)


def test_a_rank_that_fails_is_told():
    with pytest.raises(ProcessRaisedException, match="prompts"):
        scaling._in_processes(2, 0, probing=False)
