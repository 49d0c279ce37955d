"""Building and loading csrc/graph_while.cu, the CUDA C++ of sampling/device_while.py.

It is built by nvcc for the current GPU on first use, in a few seconds, and kept in the cache of the C++ library.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

import pgraft_fast
from pgraft_fast.errors import BackendError
from pgraft_fast.files import cache_folder
from pgraft_fast.ops.build import build_folder, build_once, first_line, put, run, source_folder

_USER = "device_while"
_FLAGS = [
    "-O3", "-std=c++17", "-shared", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden",
    # What is passed in belongs to the driver, so a runtime of its own serves, whichever one torch brings along.
    "-cudart=static",
]  # fmt: skip
_STREAM = _POINTER = ctypes.c_void_p
_SIGNATURES = {
    "pgraft_while_prepare": [],
    "pgraft_while_begin": [_STREAM, _STREAM, _POINTER, _POINTER, ctypes.c_int32, ctypes.POINTER(ctypes.c_uint64)],
    "pgraft_while_end": [_STREAM, _POINTER, _POINTER, ctypes.c_int32, ctypes.c_uint64],
}


@functools.cache
def load(device: int) -> ctypes.CDLL:
    """The library, ready on this GPU, which must be the current one. Raises BackendError with one line."""
    source = source_folder(_USER) / "graph_while.cu"
    architecture = "".join(map(str, torch.cuda.get_device_capability(device)))
    digest = hashlib.sha256(repr(_FLAGS).encode() + source.read_bytes()).hexdigest()[:12]
    name = f"graph_while-{pgraft_fast.__version__}-{platform.machine()}-sm_{architecture}-{digest}.so"
    path = cache_folder() / name
    build_once(_USER, path, "compiling the loop in CUDA graphs, once", lambda target: build(target, [architecture]))
    library = open_library(path)
    try:
        check(library, library.pgraft_while_prepare())
    except BackendError as error:
        raise BackendError(f"{error}; {path} is built anew once it is removed") from None
    return library


def build(target: Path, architectures: Sequence[str]) -> None:
    """Compile graph_while.cu for these architectures, e.g. "90". Raises BackendError."""
    source = source_folder(_USER) / "graph_while.cu"
    codes = [f"-gencode=arch=compute_{architecture},code=sm_{architecture}" for architecture in architectures]
    with build_folder(target) as folder:
        library = Path(folder, "library.so")
        run(_USER, [find_nvcc(), *_FLAGS, *codes, str(source), "-o", str(library)])
        put(library, target)


def open_library(path: Path) -> ctypes.CDLL:
    """The library with the types of its functions."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(f"{_USER}: {path} cannot be loaded: {first_line(str(error))}") from error
    for name, types in _SIGNATURES.items():
        getattr(library, name).argtypes = types
    library.pgraft_while_error.restype = ctypes.c_char_p
    return library


def check(library: ctypes.CDLL, status: int) -> None:
    """Raise BackendError where a function of the library failed."""
    if status:
        raise BackendError(f"{_USER}: CUDA error {status}: {library.pgraft_while_error(status).decode()}")


def find_nvcc() -> str:
    """$CUDACXX, or nvcc of $CUDA_HOME, of the PATH, or where the toolkit is installed by default."""
    choice = os.environ.get("CUDACXX")
    home = os.environ.get("CUDA_HOME")
    for name in [choice] if choice else [f"{home}/bin/nvcc" if home else "nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"]:
        nvcc = shutil.which(name)
        if nvcc:
            return nvcc
    raise BackendError(f"{_USER} needs nvcc and found none ({choice or 'nvcc'}): install the CUDA toolkit, set CUDACXX")
