"""Checks that run on several ranks, started once for all tests of a file."""

import importlib
import json
import sys
import traceback
from pathlib import Path

import ranked
from filelock import FileLock


def results(module, size, folder):
    """[what each rank found] = [{name: value}] of the module's CHECKS, functions check(mesh, ranks) -> JSON.

    folder: the same for all that ask, which are told the same.
    """
    work = Path(folder) / f"{module}-{size}"
    with FileLock(f"{work}.lock"):
        if not work.exists():
            work.mkdir()
            # A view that FSDP warns of is a wrong gradient.
            ranked.run(size, ["-W", "error:FSDP2", "-m", "rank_checks", module, str(work)])
    return [json.loads((work / f"{rank}.json").read_text()) for rank in range(size)]


def _main(module, work):
    import torch

    from pgraft_fast.ranks.sharded import mesh_of
    from pgraft_fast.ranks.start import joined

    torch.set_num_threads(1)
    with joined() as ranks:
        if ranks.size == 1:
            torch.distributed.init_process_group("gloo")
        mesh, found = mesh_of(torch.device("cpu")), {}
        for name, check in importlib.import_module(module).CHECKS.items():
            try:
                found[name] = check(mesh, ranks)
            except BaseException:
                # The others wait for messages that do not come.
                found[name] = {"error": traceback.format_exc()}
                break
        (Path(work) / f"{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
