"""The places that launchers give."""

import pytest

from pgraft_fast.errors import InputError
from pgraft_fast.ranks.environment import Place, of_ranks, place_of, speaks, timeout_seconds

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NODELIST": "gpu7",
}  # fmt: skip


def test_alone():
    assert place_of({}) is None
    assert place_of({"WORLD_SIZE": "1", "RANK": "0"}) is None
    # The shell of a batch script, before any srun.
    assert place_of({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None
    assert speaks({}) and not of_ranks({})


def test_torchrun_and_accelerate():
    assert place_of(TORCHRUN) == Place(3, 8, 1, 2, "node0", 29500)
    assert place_of({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"}).attempt == 2
    assert not speaks(TORCHRUN) and speaks({**TORCHRUN, "RANK": "0"}) and of_ranks(TORCHRUN)


def test_srun():
    assert place_of(SRUN) == Place(5, 8, 1, 4, "gpu7", 15_123)
    assert place_of({**SRUN, "MASTER_ADDR": "a", "MASTER_PORT": "1"}) == Place(5, 8, 1, 4, "a", 1)
    assert not speaks(SRUN) and of_ranks(SRUN)
    with pytest.raises(InputError, match="MASTER_ADDR"):
        place_of({**SRUN, "SLURM_STEP_NODELIST": "gpu[7-8]", "PATH": ""})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"RANK": "8"}, "RANK=8"),
        ({"RANK": "x"}, "RANK='x'"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR"),
        ({"RANK": None}, "RANK"),
    ],
)
def test_what_cannot_be(change, word):
    given = {name: value for name, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(InputError, match=word):
        place_of(given)


def test_timeout():
    assert timeout_seconds({}) == 1800.0
    assert timeout_seconds({"PGRAFT_FAST_RANK_TIMEOUT": "60"}) == 60.0
    for wrong in ("0", "nan", "soon", "1e9"):
        with pytest.raises(InputError, match="PGRAFT_FAST_RANK_TIMEOUT"):
            timeout_seconds({"PGRAFT_FAST_RANK_TIMEOUT": wrong})
