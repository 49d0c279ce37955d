"""What a launcher says in the environment of a process."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from pgraft_fast.errors import InputError

# Exit status of a rank that may do better another time.
UNEXPECTED = 70
_FIRST_PORT, _PORTS = 15_000, 20_000
# Seconds that a rank waits for another one that lives, at most.
TIMEOUT = "PGRAFT_FAST_RANK_TIMEOUT"
_TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True)
class Place:
    """rank of size in all, local_rank of local_size on this machine. address, port: of rank 0. attempt: how often the
    launcher has started all of them anew.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    attempt: int = 0


def place_of(environment: Mapping[str, str] = os.environ) -> Place | None:
    """As torchrun and `accelerate launch` say it, or srun; None for a process alone. Raises InputError."""
    if "WORLD_SIZE" in environment:
        return _of_torchrun(environment)
    # Of a step with several tasks alone: the shell of a batch script also has SLURM_NTASKS.
    if _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1 and "SLURM_PROCID" in environment:
        return _of_slurm(environment)
    return None


def speaks(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process tells and writes what all of them have done."""
    return not of_ranks(environment) or environment.get("RANK", environment.get("SLURM_PROCID", "0")) == "0"


def of_ranks(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started several of this process."""
    return environment.get("WORLD_SIZE", environment.get("SLURM_STEP_NUM_TASKS", "1")) != "1"


def timeout_seconds(environment: Mapping[str, str] = os.environ) -> float:
    """How long a rank waits for another. Raises InputError."""
    text = environment.get(TIMEOUT, "")
    try:
        seconds = float(text) if text else _TIMEOUT_SECONDS
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= 1e6:
        raise InputError(f"{TIMEOUT}={text!r}: seconds from 1 to 1,000,000 are needed")
    return seconds


def _of_torchrun(environment: Mapping[str, str]) -> Place | None:
    size = _number(environment, "WORLD_SIZE", 1)
    if size == 1:
        return None
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise InputError(
            f"WORLD_SIZE={size}, but {', '.join(missing)} not set: start with torchrun, or unset WORLD_SIZE"
        )
    rank = _number(environment, "RANK", 0)
    if not 0 <= rank < size:
        raise InputError(f"RANK={rank}: 0 to {size - 1} are needed with WORLD_SIZE={size}")
    return Place(
        rank, size, _number(environment, "LOCAL_RANK", rank), _number(environment, "LOCAL_WORLD_SIZE", size),
        environment["MASTER_ADDR"], _number(environment, "MASTER_PORT", 0),
        _number(environment, "TORCHELASTIC_RESTART_COUNT", 0),
    )  # fmt: skip


def _of_slurm(environment: Mapping[str, str]) -> Place:
    size, rank = _number(environment, "SLURM_STEP_NUM_TASKS", 1), _number(environment, "SLURM_PROCID", 0)
    # "4(x2)": four on each of two nodes; the first number is that of the first node.
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", str(size)).split("(")[0].split(",")[0]
    local = _number({"SLURM_STEP_TASKS_PER_NODE": tasks}, "SLURM_STEP_TASKS_PER_NODE", size)
    port = _FIRST_PORT + _number(environment, "SLURM_JOB_ID", 0) % _PORTS
    return Place(
        rank, size, _number(environment, "SLURM_LOCALID", 0), local,
        environment.get("MASTER_ADDR") or _first_host(environment), _number(environment, "MASTER_PORT", port),
    )  # fmt: skip


def _first_host(environment: Mapping[str, str]) -> str:
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    if nodes and not any(mark in nodes for mark in "[,"):
        return nodes
    try:
        process = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"srun on {nodes!r}: scontrol does not tell its hosts ({error}); set MASTER_ADDR") from error
    return process.stdout.split()[0]


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    try:
        return int(text) if text else default
    except ValueError as error:
        raise InputError(f"{name}={text!r}: a whole number is needed") from error
