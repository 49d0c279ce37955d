"""Building and loading csrc, the C++ operations.

A library that was built ahead of time (PGRAFT_FAST_BUILD_EXT=1 at installation) is used where it fits the sources;
else one is built on first use, about twenty seconds, and kept in a cache: $PGRAFT_FAST_CACHE, or pgraft_fast under
$XDG_CACHE_HOME or ~/.cache. Its name holds version, architecture and a hash of the sources, so an update builds anew.
The stable ABI of torch makes one library serve every torch from 2.10 on and any Python.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

import pgraft_fast
from pgraft_fast.errors import BackendError

_COMMON = [
    "-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden",
    # Every product and sum is rounded on its own, as in the reference.
    "-ffp-contract=off", "-fno-math-errno",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]  # fmt: skip
_X86 = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
}


def load() -> Any:
    """torch.ops.pgraft_fast_cpp, built first where needed. Raises BackendError with one line."""
    sources = _sources()
    name = library_name(sources)
    shipped = sources / name
    if is_whole(shipped):
        return _load(shipped)
    path = cache_folder() / name
    if not is_whole(path):
        _build_once(sources, path)
    return _load(path)


def library_name(sources: Path) -> str:
    """File name of the library of these sources on this machine."""
    files = sorted(path for path in sources.iterdir() if path.suffix in (".h", ".cpp"))
    told = hashlib.sha256(repr((_COMMON, _X86)).encode())
    for path in files:
        told.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"pgraft_fast-{pgraft_fast.__version__}-{platform.machine()}-{told.hexdigest()[:12]}.so"


def cache_folder() -> Path:
    """Where libraries built on first use are kept."""
    chosen = os.environ.get("PGRAFT_FAST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgraft_fast"


def is_whole(library: Path) -> bool:
    """Whether a library is there as it was built: loading a damaged one could end the process."""
    try:
        return _digest_file(library).read_text() == hashlib.sha256(library.read_bytes()).hexdigest()
    except OSError:
        return False


def _digest_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def build(sources: Path, target: Path) -> None:
    """Compile csrc into `target` and its digest beside it, whole or not at all. Raises BackendError."""
    compiler = _compiler()
    include = Path(torch.__file__).parent / "include"
    common = [*_COMMON, f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]
    sets = {"baseline": [], **(_X86 if platform.machine() in ("x86_64", "AMD64") else {})}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        jobs = [
            (sources / "kernels.cpp", Path(folder, f"{isa}.o"), [f"-DPGRAFT_ISA={isa}", *flags])
            for isa, flags in sets.items()
        ]
        jobs += [(sources / f"{name}.cpp", Path(folder, f"{name}.o"), []) for name in ("dispatch", "bindings")]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            commands = [[compiler, *common, *flags, "-c", str(one), "-o", str(out)] for one, out, flags in jobs]
            list(pool.map(_run, commands))
        library = Path(folder, "library.so")
        objects = [str(out) for _, out, _ in jobs]
        libraries = f"-L{Path(torch.__file__).parent / 'lib'}"
        _run([compiler, "-shared", *objects, "-o", str(library), libraries, "-ltorch", "-ltorch_cpu", "-lc10"])
        digest = Path(folder, "digest")
        digest.write_text(hashlib.sha256(library.read_bytes()).hexdigest())
        os.replace(library, target)
        os.replace(digest, _digest_file(target))


def _build_once(sources: Path, path: Path) -> None:
    """One process builds, the others wait for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not is_whole(path):
                _clean(path.parent)
                if sys.stderr.isatty():
                    print("pgraft_fast: compiling the CPU operations, once (about 20 s)", file=sys.stderr)
                build(sources, path)
    except OSError as error:
        raise BackendError(f"backend 'cpp' cannot be built in {path.parent}: {error}; set PGRAFT_FAST_CACHE") from error


def _clean(folder: Path) -> None:
    """Leftovers of builds that were killed. Called under the lock."""
    for path in folder.glob(".build-*"):
        shutil.rmtree(path, ignore_errors=True)


def _load(path: Path) -> Any:
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise BackendError(f"backend 'cpp': {path} cannot be loaded: {_first_line(str(error))}") from error
    return torch.ops.pgraft_fast_cpp


def _sources() -> Path:
    """The folder of the sources: csrc of a checkout, pgraft_fast_csrc of an installation."""
    found = importlib.util.find_spec("pgraft_fast_csrc")
    if found is None or not found.submodule_search_locations:
        raise BackendError("backend 'cpp': the package pgraft_fast_csrc is missing; install pgraft-fast again")
    return Path(next(iter(found.submodule_search_locations)))


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return found
    raise BackendError(
        f"backend 'cpp' needs a C++20 compiler and found none ({wanted or 'c++, g++, clang++'}): install g++ or set CXX"
    )


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        told = _first_line("\n".join(errors))
        raise BackendError(f"backend 'cpp': {command[0]} failed with status {done.returncode}: {told}")


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "no message")[:200]


if __name__ == "__main__":
    load()
