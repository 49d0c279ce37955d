"""Where and of what a result was measured."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from pgraft_fast_benchmarks.meters import Board
from pgraft_fast_benchmarks.records import now

_PACKAGES = ("torch", "triton", "diffusers", "transformers", "xformers")


def environment(device: torch.device) -> dict[str, Any]:
    """run (when), device, driver, threads, versions, commit of the checkout and whether it was changed.

    Outside of a checkout the commit is what PGRAFT_FAST_COMMIT says, or None, and dirty is None; results that were only
    added to do not count as a change.
    """
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "run": now(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "driver": Board.of(device).driver(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "commit": commit or os.environ.get("PGRAFT_FAST_COMMIT"),
        "dirty": None if commit is None else bool(changes),
    }


def _cpu() -> str:
    """The processor's name, with its vector instructions."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else name} ({torch.backends.cpu.get_cpu_capability()})"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        process = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).resolve().parent.parent, capture_output=True, text=True, check=False
        )  # fmt: skip
    except OSError:
        return None
    return process.stdout.strip() if process.returncode == 0 else None
