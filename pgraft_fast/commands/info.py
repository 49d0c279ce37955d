"""`pgraft-fast info`: what is installed and what this machine has."""

import importlib.metadata
import json
import platform
import struct
from pathlib import Path
from typing import Any

import torch

import pgraft_fast
from pgraft_fast.waiting import waiting

_PACKAGES = ("torch", "triton", "diffusers", "xformers", "nvidia-ml-py", "safetensors", "pydantic", "tyro")
# Whose weights are shipped.
_TASKS = (
    "digits",
    "layouts",
    "molecules",
)


def info() -> dict[str, Any]:
    """Versions, devices, threads and how they wait for each other (see `waiting`), shipped weights."""
    return {
        "pgraft_fast": pgraft_fast.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "waiting": waiting(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "weights": {task: _measured_of(task) for task in _TASKS},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _measured_of(task: str) -> dict[str, Any]:
    folder = Path(pgraft_fast.__file__).parent / "tasks" / task / "weights"
    return {path.stem: _measured(path) for path in sorted(folder.glob("*.safetensors"))}


def _measured(path: Path) -> dict[str, Any]:
    """What the recipe wrote into the file's header."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {"bytes": path.stat().st_size, **json.loads(header["__metadata__"]["pgraft_fast"])}
