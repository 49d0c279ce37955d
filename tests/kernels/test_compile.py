"""Every kernel compiles for GPUs that are not here, without spills and within a bound of registers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from repeats import repeats

pytestmark = pytest.mark.slow

pytest.importorskip("triton.compiler")

SCRIPT = Path(__file__).with_name("compile_all.py")
# The one of every case; then all, with the one of another assembler.
TARGETS = [("sm_90",), *repeats((("sm_80", "sm_90", "sm_100", "gfx942"),))]
MAX_REGISTERS = 240
# The kernels that stream over states: at least eight warps of them must fit a quarter of a multiprocessor.
STREAMING = ("philox_", "partial_noise", "weighted_mse", "solver_step/", "fixed_point", "gather_rows")
MAX_STREAMING_REGISTERS = 80


def compiled(targets: tuple[str, ...], cache: Path) -> list[tuple[str, str, int, int]]:
    """(target, case, registers, spills) of every compiled case."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(cache)
    run = subprocess.run([sys.executable, SCRIPT, *targets], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    return [(target, name, int(registers), int(spills)) for target, name, registers, spills in rows]


@pytest.mark.parametrize("targets", TARGETS, ids=len)
def test_compile(targets: tuple[str, ...], tmp_path: Path) -> None:
    report = compiled(targets, tmp_path)
    kernels = {name.split("/")[0] for _, name, _, _ in report}
    table = {}
    for target, name, registers, spills in report:
        table.setdefault(name, {})[target] = f"{registers}/{spills}"
    for name, by_target in sorted(table.items()):
        print(f"{name:40}", *(f"{target} {by_target.get(target, '-'):8}" for target in sorted(targets)))
    for target in targets:
        assert {name.split("/")[0] for where, name, _, _ in report if where == target} == kernels
    assert [row for row in report if row[3] != 0] == []
    assert [row for row in report if row[2] > MAX_REGISTERS] == []
    assert [row for row in report if row[1].startswith(STREAMING) and row[2] > MAX_STREAMING_REGISTERS] == []
