"""Every kernel compiles for GPUs that are not here, without spills and within a bound of registers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton.compiler")

SCRIPT = Path(__file__).with_name("compile_all.py")
TARGETS = {"sm_80", "sm_90", "sm_100", "gfx942"}
MAX_REGISTERS = 240
# The kernels that stream over states: at least eight warps of them must fit a quarter of a multiprocessor.
STREAMING = ("philox_", "partial_noise", "weighted_mse", "solver_step/", "fixed_point", "gather_rows")
MAX_STREAMING_REGISTERS = 80


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, int, int]]:
    """(target, case, registers, spills) of every compiled case."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    run = subprocess.run([sys.executable, SCRIPT], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    return [(target, name, int(registers), int(spills)) for target, name, registers, spills in rows]


def test_compile(report: list[tuple[str, str, int, int]]) -> None:
    kernels = {name.split("/")[0] for _, name, _, _ in report}
    table = {}
    for target, name, registers, spills in report:
        table.setdefault(name, {})[target] = f"{registers}/{spills}"
    for name, by_target in sorted(table.items()):
        print(f"{name:40}", *(f"{target} {by_target.get(target, '-'):8}" for target in sorted(TARGETS)))
    for target in TARGETS:
        assert {name.split("/")[0] for where, name, _, _ in report if where == target} == kernels
    assert [row for row in report if row[3] != 0] == []
    assert [row for row in report if row[2] > MAX_REGISTERS] == []
    assert [row for row in report if row[1].startswith(STREAMING) and row[2] > MAX_STREAMING_REGISTERS] == []
