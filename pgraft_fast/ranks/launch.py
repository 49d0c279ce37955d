"""The ranks of one machine, started by torchrun's own engine, and started anew where one of them dies."""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pgraft_fast.errors import InputError, RankError
from pgraft_fast.ranks.environment import UNEXPECTED

# Where a rank leaves its exit status; a launcher that sees one other than 0 would start all ranks anew, in vain.
STATUS = "PGRAFT_FAST_STATUS_FILE"
_RESTARTS, _LOOK_SECONDS, _CLOSE_SECONDS = 3, 0.2, 10


def launch(ranks: int, arguments: Sequence[str]) -> int:
    """Run `python -m pgraft_fast ...` as so many ranks, one on each GPU; without GPUs they share the cores. Returns the
    exit status: that of the ranks, 0 where a signal stopped them at a safe point. The first signal is passed on, the
    second ends all at once.

    Raises InputError where there are fewer GPUs, RankError where a rank has died four times.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and ranks > gpus:
        raise InputError(f"--gpus {ranks}: this machine has {gpus}")
    with tempfile.TemporaryDirectory(prefix="pgraft_fast-") as folder:
        status = Path(folder) / "status"
        os.environ.update(_environment(ranks, gpus, os.environ), **{STATUS: str(status)})
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=ranks, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=_RESTARTS, monitor_interval=_LOOK_SECONDS,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )  # fmt: skip
        # Older ones take thirty seconds.
        if hasattr(config, "shutdown_timeout"):
            config.shutdown_timeout = _CLOSE_SECONDS
        _quiet()
        try:
            elastic_launch(config, sys.executable)("-m", "pgraft_fast", *arguments)
        except SignalException as error:
            # It was passed on to the ranks, which have ended by now; at a second one they are left.
            _end_children()
            return _status(status, 128 + int(error.sigval))
        except ChildFailedError as error:
            raise RankError(_cause(error.failures)) from None
        finally:
            # Of the ranks, not of this process.
            del os.environ[STATUS]
        return _status(status, 0)


def leave_status(status: int) -> int:
    """What a rank that was started by `launch` exits with, once it has left its status for the launcher; what may go
    better another time is not left.
    """
    path = os.environ.get(STATUS)
    if path is None or status == UNEXPECTED:
        return status
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):
            Path(path).write_text(str(status), encoding="utf-8")
    return 0


def _environment(ranks: int, gpus: int, known: Mapping[str, str]) -> dict[str, str]:
    # Its own store for each start: with the shared one a restart often does not find together again.
    new = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    if "OMP_NUM_THREADS" not in known and gpus == 0:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        new["OMP_NUM_THREADS"] = str(max(1, cores // ranks))
    return new


def _quiet() -> None:
    """What the engine says of restarts is told in a line of ours, and of signals by the ranks."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.ERROR)


def _end_children() -> None:
    """Each rank leads a process group of its own."""
    with suppress(OSError):
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split():
            with suppress(OSError):
                if os.getpgid(int(child)) == int(child):
                    os.killpg(int(child), signal.SIGKILL)


def _status(path: Path, otherwise: int) -> int:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return otherwise


def _cause(failures: Mapping[int, Any]) -> str:
    """Of the rank that failed first."""
    rank, failure = min(failures.items(), key=lambda item: item[1].timestamp)
    how = f"exit status {failure.exitcode}"
    if failure.exitcode < 0:
        how = f"killed by {signal.Signals(-failure.exitcode).name}"
    return (
        f"rank {rank} has died {_RESTARTS + 1} times, the last time {how}; finished rounds are safe, the same command "
        "goes on from there"
    )
