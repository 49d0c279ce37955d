"""Checks on several ranks: processes with gloo on the CPU, started once for all tests of a file."""

import importlib
import json
import os
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path

from filelock import FileLock

_TESTS = Path(__file__).parent
_SECONDS = 120


def results(module, size, folder):
    """[what each rank found] = [{name: value}] of the module's CHECKS, functions check(mesh, rank) -> JSON.

    folder: the same for all that ask, which are told the same.
    """
    work = Path(folder) / f"{module}-{size}"
    with FileLock(f"{work}.lock"):
        if not work.exists():
            work.mkdir()
            _start(module, size, work)
    return [json.loads((work / f"{rank}.json").read_text()) for rank in range(size)]


def _start(module, size, work):
    path = os.pathsep.join([str(_TESTS), str(_TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error:FSDP2", "-m", "ranked", module, str(size), str(work)]
    ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(size)]
    try:
        for rank in ranks:
            rank.wait(timeout=_SECONDS)
    finally:
        for rank in ranks:
            rank.kill()


def _main(module, size, work, rank):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{work}/meet", rank=rank, world_size=size, timeout=timedelta(seconds=30)
    )
    from pgraft_fast.ranks.sharded import mesh_of

    mesh, found = mesh_of(torch.device("cpu")), {}
    for name, check in importlib.import_module(module).CHECKS.items():
        try:
            found[name] = check(mesh, rank)
        except BaseException:
            # The others wait for messages that do not come.
            found[name] = {"error": traceback.format_exc()}
            break
    (Path(work) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
