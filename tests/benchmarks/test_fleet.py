"""The plan past these machines: its bytes by hand, its closed forms against simulations, its document current."""

import math
from pathlib import Path

import pytest

from pgraft_fast.cli import main
from pgraft_fast_benchmarks import fleet_faults, fleet_tables, readme_tables
from pgraft_fast_benchmarks.fleet import FLEETS, WORKS, Round

SD, SDXL, FLUX, SD35 = WORKS


def test_bytes_by_hand():
    """16 prompts of 8 candidates a GPU, one of each kept."""
    two = Round(SD, 2)
    assert two.rewards == 16 * 128  # Half of what two GPUs have.
    assert two.rows == 16 * (4 * 4 * 64 * 64 + 8)
    assert two.gradients == 4 * 3_319_808
    assert Round(SD, 8).gradients == pytest.approx(2 * 7 / 8 * 4 * 3_319_808)
    assert Round(SD, 8, deterministic=True).gradients == pytest.approx(7 * 4 * 3_319_808)
    assert two.weights == 0.0 and Round(FLUX, 8).weights == pytest.approx(7 / 8 * 2 * 11_901_408_320)
    assert Round(SD35, 8).gradients == pytest.approx(7 / 8 * 4 * 8_056_627_520)
    # Scattered in the node, then each eighth summed over the 128 nodes.
    wanted = 7 / 8 * 4 * 8_056_627_520 + 2 * 127 / 128 * 4 * 8_056_627_520 / 8
    assert Round(SD35, 1024, hybrid=True).gradients == pytest.approx(wanted)
    assert Round(SD35, 1024, hybrid=True).weights == Round(SD35, 8).weights


def test_seconds_by_hand():
    """Of SDXL: 128 samples of 30 steps and two sides, 64 rows three times through the network in 16 steps."""
    rate = 0.4 * 989.4e12
    one = Round(SDXL, 8)
    assert one.sampling == pytest.approx(128 * 60 * 6.761236e12 / rate)
    sent = one.gradients / 360e9 + 2 * 3 * 20e-6
    assert one.training == pytest.approx(64 * 3 * 6.761236e12 / rate + 16 * sent)
    assert one.saving == pytest.approx(4 * 4 * 46_448_640 / 2e9)
    # Four rows of SD 3.5 take less than a gather between nodes, which then is what a call takes.
    slow = Round(SD35, 64)
    assert slow.sampling == pytest.approx(128 * 56 / 4 * (slow.weights / 40e9 + 2 * 6 * 20e-6))


@pytest.mark.parametrize("work", WORKS, ids=[work.name for work in WORKS])
def test_more_gpus_are_never_more_efficient(work):
    shares = [Round(work, gpus).efficiency for gpus in FLEETS]
    assert 1.0 > shares[0] > shares[1] > shares[2] > 0.5


def test_no_network_is_needed_by_one_gpu():
    alone = Round(SD, 1)
    assert alone.rewards == alone.rows == alone.gradients == 0.0
    assert alone.straggling == pytest.approx(1.0)
    assert alone.seconds == pytest.approx(alone.computing + alone.saving)


@pytest.mark.parametrize("length, restart, rate", [(600.0, 600.0, 1e-4), (60.0, 600.0, 2e-3), (3600.0, 60.0, 5e-4)])
def test_failures_as_played(length, restart, rate):
    """A thousandth of a run of the test would be wrong by chance at four standard errors; seeds are fixed."""
    mean, error = fleet_faults.simulated_round_seconds(length, restart, rate, 40_000)
    assert mean == pytest.approx(fleet_faults.round_seconds(length, restart, rate), abs=4.0 * error)
    assert error < 0.02 * mean


def test_failures_in_the_limits():
    assert fleet_faults.goodput(600.0, 600.0, 0.0) == 1.0
    # Of first order: a failure loses half a round and a restart.
    rate = 1e-8
    assert 1.0 / fleet_faults.goodput(600.0, 300.0, rate) - 1.0 == pytest.approx(rate * (300.0 + 300.0), rel=1e-3)


@pytest.mark.parametrize("gpus", FLEETS)
def test_the_slowest_as_drawn(gpus):
    mean, error = fleet_faults.simulated_slowest(gpus, 0.02, 4_000)
    assert mean == pytest.approx(fleet_faults.slowest(gpus, 0.02), abs=4.0 * error)
    # E[max of two normals] = 1 / sqrt(pi).
    assert fleet_faults.slowest(2, 1.0) == pytest.approx(1.0 + 1.0 / math.sqrt(math.pi), abs=1e-6)


def test_the_document_is_current():
    text = (Path(__file__).parents[2] / "docs/scale.md").read_text()
    assert readme_tables.updated_scale(text) == text


def test_the_command_prints_the_tables(capsys):
    assert main(["bench", "fleet", "--json", "-"]) == 0
    shown = capsys.readouterr()
    for name, table in fleet_tables.tables().items():
        assert name in shown.err and table.note[:40] in shown.err and f'"{name}"' in shown.out
