"""Everything that a GPU machine should be asked, in one command of at most nine minutes: make gpu-check OUT=folder.

Needs torch and no network; what else is missing is skipped and said. The pieces stand in the order of their worth, each
has its own time limit, and each writes its files at once, so that a run that is cut off leaves results:
<piece>.log, results.csv (rows of the benchmarks), check.json (what ran, how it ended, how long it took).
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(ROOT))

from code_path import make  # noqa: E402

from pgraft_fast.waiting import passive_environment  # noqa: E402

MINUTES = 9.0
_MODULE = [sys.executable, "-m"]
_RUN = [*_MODULE, "pgraft_fast_benchmarks.run"]


@dataclass(frozen=True)
class Piece:
    """seconds: its limit. needs: modules, or programs with "$" in front. gpu: whether it has no meaning without one."""

    name: str
    seconds: float
    command: list[str]
    needs: tuple[str, ...] = ()
    gpu: bool = True


def pieces(out: Path) -> list[Piece]:
    """In the order of their worth."""
    csv = ["--size", "quick", "--csv", str(out / "results.csv")]
    tests = [
        *_MODULE, "pytest", "--noconftest", "-p", "no:cacheprovider", "-q", "--tb=short", "-rs",
        str(ROOT / "tests" / "gpu"),
    ]  # fmt: skip
    smoke = ["--tool", "memcheck", "--error-exitcode", "1", *_RUN, "ops", "--size", "smoke"]
    return [
        Piece("versions", 30, [sys.executable, "-c", _VERSIONS], gpu=False),
        Piece("build", 90, [sys.executable, "-c", _BUILD], gpu=False),
        Piece("tests", 150, tests, ("pytest",)),
        Piece("sanitizer", 90, ["compute-sanitizer", *smoke], ("$compute-sanitizer",)),
        Piece("bench-ops", 120, [*_RUN, "ops", *csv], gpu=False),
        Piece("bench-round", 90, [*_RUN, "round", *csv], ("sklearn", "pydantic"), gpu=False),
        Piece("bench-invert", 40, [*_RUN, "invert", *csv], ("sklearn",), gpu=False),
        Piece("bench-sampling", 180, [*_RUN, "sampling", *csv], ("diffusers",), gpu=False),
        Piece("bench-quality", 90, [*_RUN, "quality", *csv], ("sklearn", "pydantic", "rich", "matplotlib"), gpu=False),
    ]


_VERSIONS = """
import importlib.metadata, json, platform, torch
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return None
names = ("torch", "triton", "diffusers", "transformers", "peft", "accelerate", "xformers", "nvidia-ml-py", "pytest")
cuda = torch.cuda.is_available()
print(json.dumps({"python": platform.python_version(), **{n: version(n) for n in names},
                  "device": torch.cuda.get_device_name() if cuda else None, "cuda": torch.version.cuda}, indent=1))
"""
_BUILD = """
import torch
from pgraft_fast.errors import BackendError
from pgraft_fast.ops import extension, nvcc
failed = []
parts = {"C++": lambda: print("C++:", extension.find())}
if torch.cuda.is_available():
    parts["CUDA"] = lambda: print("CUDA:", nvcc.load(0))
for name, build in parts.items():
    try: build()
    except BackendError as error: failed.append(name); print(name, error)
raise SystemExit(len(failed))
"""


def main() -> int:
    """Exit status 1 where a piece failed; skipped and cut-off pieces are no failures."""
    out = Path(os.environ.get("OUT") or "gpu-check").absolute()
    out.mkdir(parents=True, exist_ok=True)
    began, gpu = time.monotonic(), _has_gpu()
    told: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **passive_environment(), "PYTHONPATH": f"{make(Path(folder) / 'code', ROOT)}{os.pathsep}{ROOT / 'tests'}",
            "PGRAFT_FAST_CACHE": os.environ.get("PGRAFT_FAST_CACHE") or str(Path(folder) / "cache"),
            "TRITON_INTERPRET": "0", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        for piece in pieces(out):
            left = 60.0 * MINUTES - (time.monotonic() - began)
            told.append(_one(piece, left, gpu, out, environment))
            print(f"{piece.name}: {told[-1]['end']} ({told[-1]['seconds']} s)", flush=True)
            (out / "check.json").write_text(json.dumps({"gpu": gpu, "pieces": told}, indent=1) + "\n")
    return int(any(str(one["end"]).startswith("failed") for one in told))


def _one(piece: Piece, left: float, gpu: bool, out: Path, environment: dict[str, str]) -> dict[str, object]:
    why = _why_not(piece, left, gpu)
    if why is not None:
        return {"piece": piece.name, "end": f"skipped: {why}", "seconds": 0.0}
    began = time.monotonic()
    with open(out / f"{piece.name}.log", "w") as log:
        try:
            status = subprocess.run(
                piece.command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=out, check=False,
                timeout=min(piece.seconds, left),
            ).returncode  # fmt: skip
            end = {0: "done", 3: "skipped: a package is missing, see its log"}.get(
                status, f"failed with status {status}"
            )
        except subprocess.TimeoutExpired:
            end = f"cut off after {min(piece.seconds, left):.0f} s; what it wrote stays"
    return {"piece": piece.name, "end": end, "seconds": round(time.monotonic() - began, 1)}


def _why_not(piece: Piece, left: float, gpu: bool) -> str | None:
    if left < 5.0:
        return "the time is up"
    if piece.gpu and not gpu:
        return "no CUDA device"
    for name in piece.needs:
        program = name.startswith("$")
        if (shutil.which(name[1:]) if program else importlib.util.find_spec(name)) is None:
            return f"{name.lstrip('$')} is not installed"
    return None


def _has_gpu() -> bool:
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
