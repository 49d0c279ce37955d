"""What a GPU machine should be asked, in parts of at most eight minutes: make gpu-check PART=tests OUT=folder.

Needs torch and no network. What else is missing is said first, with the command that fetches it elsewhere; packages
that are carried along on PYTHONPATH count. The parts stand in the order of their worth; PART=all runs of them what
fits into nine minutes. Each piece has its own time limit and writes at once, so that a run that is cut off leaves
results, in three files: check.log (all that the pieces print), results.csv (rows of the benchmarks), check.json (how
each ended).
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(ROOT))

from code_path import make  # noqa: E402

from pgraft_fast.extras import CLI  # noqa: E402
from pgraft_fast.waiting import passive_environment  # noqa: E402

PARTS = ("tests", "ops", "pipelines", "finetune", "ranks", "profile")
MINUTES, MINUTES_OF_ALL = 8.0, 9.0
_MODULE = [sys.executable, "-m"]
_RUN = [*_MODULE, "pgraft_fast_benchmarks.run"]
_MOST_WORKERS = 8
_MISSING = 3
# What the command line needs, and what runs of pipelines do.
_COMMANDS = (*CLI, "pydantic", "rich")
_PIPELINES = ("pydantic", "diffusers", "greenlet", "peft", "transformers")
# Under the name of a registry.
_REGISTRY = {"sklearn": "scikit-learn"}
# Those that need torch, with what else they need.
_NEED_TORCH = {"peft": "accelerate"}


@dataclass(frozen=True)
class Piece:
    """seconds: its limit. needs: modules, or programs with "$" in front. gpu: whether it has no meaning without one."""

    name: str
    seconds: float
    command: list[str]
    needs: tuple[str, ...] = ()
    gpu: bool = True


def pieces(part: str, out: Path, gpu: bool = True) -> list[Piece]:
    """Of a part, or of all, in the order of their worth. Without a GPU it is tried whether all runs, at tiny sizes."""
    csv = ["--size", "quick" if gpu else "smoke", "--csv", str(out / "results.csv")]
    workers = ["-n", str(min(_MOST_WORKERS, os.cpu_count() or 1))] if _has("xdist") else []
    # Each test is named as it ends, a failure is shown then: a run that is cut off tells how far it came.
    tests = [
        *_MODULE, "pytest", "--noconftest", "-p", "no:cacheprovider", "-p", "failures_at_once", "-o", "addopts=", "-v",
        "--tb=short", "-rfEs",
        *workers, str(ROOT / "tests" / "gpu"),
    ]  # fmt: skip
    # Of our kernels alone, and not of the compilers that are started.
    smoke = [
        "--tool", "memcheck", "--target-processes", "application-only", "--kernel-name", "kernel_substring=wd_kernel",
        "--error-exitcode", "1", *_RUN, "ops", "--size", "smoke",
    ]  # fmt: skip
    of = {
        "tests": [
            Piece("versions", 30, [sys.executable, "-c", _VERSIONS], gpu=False),
            Piece("build", 60, [sys.executable, "-c", _BUILD], gpu=False),
            Piece("tests", 240, tests, ("pytest",)),
            Piece("sanitizer", 150, ["compute-sanitizer", *smoke], ("$compute-sanitizer",)),
        ],
        "ops": [
            Piece("bench-ops", 360, [*_RUN, "ops", *csv], gpu=False),
            Piece("bench-invert", 90, [*_RUN, "invert", *csv], ("sklearn", "pydantic"), gpu=False),
        ],
        "pipelines": [
            Piece("bench-sampling", 470, [*_RUN, "sampling", *csv],
                  ("diffusers", "transformers", *(() if gpu else ("pydantic", "sklearn"))), gpu=False),
        ],
        "finetune": [
            Piece("bench-round", 470, [*_RUN, "round", *csv], ("sklearn", *_PIPELINES), gpu=False),
        ],
        "ranks": [
            # NCCL on one rank, gloo on two that share a GPU, each against the same run in one process.
            Piece("ranks", 240, [*_MODULE, "pytest", "--noconftest", "-p", "no:cacheprovider", "-o", "addopts=", "-v",
                  "--tb=short", str(ROOT / "tests" / "gpu" / "test_ranks.py")], ("pytest", *_COMMANDS, *_PIPELINES)),
            Piece("bench-ranks", 200, [*_RUN, "ranks", *csv], _COMMANDS, gpu=False),
        ],
        "profile": [
            Piece("profile", 240, [*_MODULE, "pgraft_fast_benchmarks.profile_round"],
                  ("sklearn", *_PIPELINES), gpu=False),
            Piece("bench-quality", 230, [*_RUN, "quality", *csv], (*_COMMANDS, *(() if gpu else ("rdkit",))),
                  gpu=False),
        ],
    }  # fmt: skip
    return of[part] if part in of else [piece for group in of.values() for piece in group]


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
    """Exit status 1 where a piece failed or was cut off, 2 for an unknown part; skipped pieces are no failures."""
    part = os.environ.get("PART") or "all"
    if part not in (*PARTS, "all"):
        print(f"PART={part!r} is unknown; known: {', '.join(PARTS)}, all", file=sys.stderr)
        return 2
    out = Path(os.environ.get("OUT") or "gpu-check").absolute()
    out.mkdir(parents=True, exist_ok=True)
    began, gpu = time.monotonic(), _has_gpu()
    minutes = MINUTES_OF_ALL if part == "all" else MINUTES
    chosen = pieces(part, out, gpu)
    _tell_missing(chosen)
    outcomes: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(Path(folder))
        for piece in chosen:
            left = 60.0 * minutes - (time.monotonic() - began)
            outcomes.append(_run_piece(piece, left, gpu, out, environment))
            print(f"{piece.name}: {outcomes[-1]['end']} ({outcomes[-1]['seconds']} s)", flush=True)
            (out / "check.json").write_text(json.dumps({"part": part, "gpu": gpu, "pieces": outcomes}, indent=1) + "\n")
    _print_table(outcomes)
    return int(any(str(outcome["end"]).startswith(("failed", "cut off")) for outcome in outcomes))


def _environment(folder: Path) -> dict[str, str]:
    """Of the pieces: the checkout as packages, before what the caller has on the path."""
    own = [str(make(folder / "code", ROOT)), str(ROOT / "tests")]
    carried = [place for place in (os.environ.get("PYTHONPATH") or "").split(os.pathsep) if place]
    return {
        **passive_environment(), "PYTHONPATH": os.pathsep.join((*own, *carried)),
        "PGRAFT_FAST_CACHE": os.environ.get("PGRAFT_FAST_CACHE") or str(folder / "cache"),
        "TRITON_INTERPRET": "0", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def _run_piece(piece: Piece, left: float, gpu: bool, out: Path, environment: dict[str, str]) -> dict[str, object]:
    why = _why_not(piece, left, gpu)
    if why is not None:
        return {"piece": piece.name, "end": f"skipped: {why}", "seconds": 0.0}
    began = time.monotonic()
    with open(out / "check.log", "a") as log:
        log.write(f"== {piece.name}\n")
        log.flush()
        process = None
        try:
            # In a session of its own: what it starts ends with it.
            with _stops_wait():
                process = subprocess.Popen(
                    piece.command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=out,
                    start_new_session=True,
                )  # fmt: skip
            status = process.wait(min(piece.seconds, left))
            end = "done" if status == 0 else f"failed with status {status}"
            if status == _MISSING:
                end = "skipped: a package is missing, see the log"
        except subprocess.TimeoutExpired:
            end = f"cut off after {min(piece.seconds, left):.0f} s; what it wrote stays"
        finally:
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return {"piece": piece.name, "end": end, "seconds": round(time.monotonic() - began, 1)}


@contextlib.contextmanager
def _stops_wait() -> Iterator[None]:
    """A Ctrl-C or SIGTERM within the block is raised at its end: a process half started would be lost sight of."""
    came: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda received, _: came.append(received)) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _why_not(piece: Piece, left: float, gpu: bool) -> str | None:
    if left < 5.0:
        return "the time is up"
    if piece.gpu and not gpu:
        return "no CUDA device"
    missing = _missing(piece)
    return f"{missing[0].lstrip('$')} is not installed" if missing else None


def _missing(piece: Piece) -> list[str]:
    return [name for name in piece.needs if not _has(name)]


def _has(name: str) -> bool:
    location = shutil.which(name[1:]) if name.startswith("$") else importlib.util.find_spec(name)
    return location is not None


def _tell_missing(chosen: list[Piece]) -> None:
    """What is not here, and how to bring it from a machine with a network."""
    missing = {piece.name: names for piece in chosen if (names := _missing(piece))}
    for piece_name, names in missing.items():
        print(f"{piece_name} is skipped: no {', no '.join(name.lstrip('$') for name in names)} here")
    unique = dict.fromkeys(name for names in missing.values() for name in names if not name.startswith("$"))
    if not unique:
        return
    fetch = (
        f"pip download --only-binary=:all: --python-version {sys.version_info.major}.{sys.version_info.minor} -d wheels"
    )
    modules = " ".join(_REGISTRY.get(name, name) for name in unique)
    whole = " ".join(_REGISTRY.get(name, name) for name in unique if name not in _NEED_TORCH)
    alone = " ".join(f"{name} {_NEED_TORCH[name]}".strip() for name in unique if name in _NEED_TORCH)
    # With what they need themselves, of which the last command takes what is not here; but torch is.
    commands = [f"{fetch} {whole}"] * bool(whole) + [f"{fetch} --no-deps {alone}"] * bool(alone)
    here = f"pip install --no-index --find-links wheels {modules}"
    print(f"to bring them: {'; '.join(commands)}; here: {here}", flush=True)


def _print_table(outcomes: list[dict[str, object]]) -> None:
    width = max(len(str(outcome["piece"])) for outcome in outcomes)
    for outcome in outcomes:
        print(f"{outcome['piece']:<{width}}  {outcome['seconds']:>6} s  {outcome['end']}")


def _has_gpu() -> bool:
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL).returncode == 0


if __name__ == "__main__":
    # As Ctrl-C: the piece that runs ends, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
