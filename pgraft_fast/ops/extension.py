"""Building and loading csrc, the C++ operations.

A library that was built ahead of time (PGRAFT_FAST_BUILD_EXT=1 at installation) is used where it fits the sources;
else one is built on first use, about twenty seconds, and kept in a cache: $PGRAFT_FAST_CACHE, or pgraft_fast under
$XDG_CACHE_HOME or ~/.cache. Its name holds version, architecture and a hash of the sources, so an update builds anew.
The stable ABI of torch makes one library serve every torch from 2.10 on and any Python.
"""

import functools
import hashlib
import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pgraft_fast
from pgraft_fast.errors import BackendError
from pgraft_fast.files import cache_folder
from pgraft_fast.ops.build import build_folder, build_once, first_line, is_whole, put, run, source_folder

_USER = "backend 'cpp'"
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
    loaded()
    return torch.ops.pgraft_fast_cpp


@functools.cache
def loaded() -> Path:
    """The library that this process has loaded, once: a second copy, of another cache, would end the process."""
    path = find()
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise BackendError(f"{_USER}: {path} cannot be loaded: {first_line(str(error))}") from error
    return path


def find() -> Path:
    """The library of this machine, built first where needed. Raises BackendError."""
    sources = source_folder(_USER)
    name = library_name(sources)
    shipped = sources / name
    if is_whole(shipped):
        return shipped
    path = cache_folder() / name
    build_once(_USER, path, "compiling the CPU operations, once (about 20 s)", lambda target: build(sources, target))
    return path


def library_name(sources: Path) -> str:
    """File name of the library of these sources on this machine."""
    files = sorted(path for path in sources.iterdir() if path.suffix in (".h", ".cpp"))
    digest = hashlib.sha256(repr((_COMMON, _X86)).encode())
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"pgraft_fast-{pgraft_fast.__version__}-{platform.machine()}-{digest.hexdigest()[:12]}.so"


def build(sources: Path, target: Path) -> None:
    """Compile csrc into `target` and its digest beside it, whole or not at all. Raises BackendError."""
    compiler = _compiler()
    include = Path(torch.__file__).parent / "include"
    common = [*_COMMON, f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]
    sets = {"baseline": [], **(_X86 if platform.machine() in ("x86_64", "AMD64") else {})}
    with build_folder(target) as folder:
        jobs = [
            (sources / "kernels.cpp", Path(folder, f"{isa}.o"), [f"-DPGRAFT_ISA={isa}", *flags])
            for isa, flags in sets.items()
        ]
        jobs += [(sources / f"{name}.cpp", Path(folder, f"{name}.o"), []) for name in ("dispatch", "bindings")]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            commands = [[compiler, *common, *flags, "-c", str(source), "-o", str(out)] for source, out, flags in jobs]
            list(pool.map(partial(run, _USER), commands))
        library = Path(folder, "library.so")
        objects = [str(out) for _, out, _ in jobs]
        libraries = f"-L{Path(torch.__file__).parent / 'lib'}"
        run(_USER, [compiler, "-shared", *objects, "-o", str(library), libraries, "-ltorch", "-ltorch_cpu", "-lc10"])
        put(library, target)


def _compiler() -> str:
    choice = os.environ.get("CXX")
    for name in [choice] if choice else ["c++", "g++", "clang++"]:
        compiler = shutil.which(name)
        if compiler:
            return compiler
    raise BackendError(
        f"{_USER} needs a C++20 compiler and found none ({choice or 'c++, g++, clang++'}): install g++ or set CXX"
    )


if __name__ == "__main__":
    load()
