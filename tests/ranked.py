"""Processes that take each other for ranks, as torchrun would start them."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parent


def shared_folder(tmp_path_factory) -> Path:
    """The same for all workers of a parallel run."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if folder.name.startswith("popen-") else folder


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """One thread each: the same arithmetic on any number of ranks and cores."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    of_place = {name: str(value) for name, value in place.items()}
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    return {
        **os.environ, **of_place, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path,
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip


def start(size: int, arguments: Sequence[str], **streams) -> list[subprocess.Popen]:
    """`python arguments...` on so many ranks."""
    port = free_port()
    return [
        subprocess.Popen([sys.executable, *arguments], env=environment(rank, size, port), text=True, **streams)
        for rank in range(size)
    ]


def run(size: int, arguments: Sequence[str], timeout: float = 300.0) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of every rank."""
    processes = start(size, arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        ended = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *streams) for process, streams in zip(processes, ended, strict=True)]
