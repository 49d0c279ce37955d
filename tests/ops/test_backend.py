"""Choosing a backend, and building the C++ one: once, in parallel, without a compiler, from a damaged cache."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pgraft_fast as pf
from pgraft_fast.errors import BackendError, InputError
from pgraft_fast.ops import philox_normal, solver_step, use_backend
from pgraft_fast.ops.extension import cache_folder, library_name, load, loaded

NORMALS = "import torch, pgraft_fast.ops as o; print(o.philox_normal(1, torch.arange(3), torch.tensor([0]), 2).sum())"


def python(code, **env):
    """A fresh interpreter; TRITON_INTERPRET is not handed down."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, "-c", code], env=kept | env, capture_output=True, text=True, check=False)


# Each of them once: several tests compare with the same run.
plain = functools.cache(python)


def test_a_forced_backend_and_back():
    ids, step = torch.arange(4), torch.tensor([1])
    normals = {}
    for name in ("reference", "cpp", "triton", None):
        with pf.use_backend(name):
            normals[name] = philox_normal(5, ids, step, 9)
    assert all(torch.equal(normals[None], other) for other in normals.values())
    with (
        pytest.raises(InputError, match="backend='cuda' is unknown; known: reference, cpp, triton"),
        use_backend("cuda"),
    ):
        pass


def test_float64_is_the_reference_s():
    x = torch.randn(2, 3, dtype=torch.float64)
    table = torch.tensor([[1.0, -0.5, 0.8, 0.1, 0.0, 0.0, 1, 0]], dtype=torch.float64)
    with use_backend("cpp"):
        done = solver_step(x, x, table, torch.tensor(0))
    assert torch.allclose(done.x_s, 0.85 * x, rtol=1e-14)


def test_forced_and_missing_raises():
    first = "import os\ntry:\n    import pgraft_fast.ops\nexcept Exception as error:\n    print(error)\n"
    refused = python(first + "os.environ['PGRAFT_FAST_BACKEND'] = 'triton'\n" + NORMALS, PGRAFT_FAST_BACKEND="gpu")
    assert "PGRAFT_FAST_BACKEND='gpu' is unknown; known: reference, cpp, triton" in refused.stdout
    assert "backend 'triton' runs on CUDA tensors (or with TRITON_INTERPRET=1), got one on cpu" in refused.stderr
    with use_backend("cpp"), pytest.raises(BackendError, match="'cpp' runs on CPU tensors, got one on meta"):
        solver_step(*(torch.zeros(2, 3, device="meta") for _ in range(2)), torch.zeros(1, 8, device="meta"),
                    torch.zeros(1, dtype=torch.int64, device="meta"))  # fmt: skip


def test_without_a_compiler(tmp_path):
    """One clear line and the reference; forced, an error."""
    missing = {"PGRAFT_FAST_CACHE": str(tmp_path / "cache"), "CXX": "no-such-compiler"}
    done = python(NORMALS, **missing)
    assert done.returncode == 0
    assert done.stdout == f"{philox_normal(1, torch.arange(3), torch.tensor([0]), 2).sum()!r}\n"
    lines = [line for line in done.stderr.splitlines() if "pgraft_fast:" in line]
    assert len(lines) == 1
    assert "needs a C++20 compiler and found none (no-such-compiler): install g++ or set CXX" in lines[0]
    refused = python(NORMALS, PGRAFT_FAST_BACKEND="cpp", **missing)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("pgraft_fast.errors.BackendError: backend 'cpp' needs a C++20")


def test_a_compiler_that_fails_is_named(tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'kernels.cpp:1: error: no such thing' >&2\nexit 3\n")
    broken.chmod(0o755)
    done = python(NORMALS, PGRAFT_FAST_CACHE=str(tmp_path / "cache"), CXX=str(broken))
    assert done.returncode == 0
    assert "failed with status 3: kernels.cpp:1: error: no such thing; the slower reference runs" in done.stderr
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = python(NORMALS, PGRAFT_FAST_CACHE=str(tmp_path / "file" / "cache"))
    assert done.returncode == 0
    assert "cannot be built in" in done.stderr and "set PGRAFT_FAST_CACHE" in done.stderr


def test_a_process_loads_one_library(tmp_path):
    """Whatever becomes of its cache: a second copy would register its operations again, and end the process."""
    built = loaded()
    for path in built.parent.glob(f"{built.stem}.*"):
        shutil.copy(path, tmp_path)
    code = (
        "import os; from pgraft_fast.ops.extension import find, load, loaded; load(); "
        f"os.environ['PGRAFT_FAST_CACHE'] = {str(tmp_path)!r}; load(); print(find(), loaded())"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(built if built.parent == _shipped() else tmp_path / built.name), str(built)]


def test_one_build_serves_processes_that_start_together(tmp_path):
    """A stand-in compiler counts its calls and, once linking, gives the library that is built already."""
    load()
    built = next(path for path in (cache_folder(), _shipped()) if (path / _name()).exists()) / _name()
    counter, compiler = tmp_path / "calls", tmp_path / "compiler"
    compiler.write_text(
        f"#!/bin/sh\necho call >> {counter}\nwhile [ $# -gt 1 ]; do [ $1 = -o ] && out=$2; shift; done\n"
        f"sleep 0.3\ncp {built} $out\n"
    )
    compiler.chmod(0o755)
    env = dict(os.environ, PGRAFT_FAST_CACHE=str(tmp_path / "cache"), CXX=str(compiler), PGRAFT_FAST_BACKEND="cpp")
    runs = [
        subprocess.Popen([sys.executable, "-c", NORMALS], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert len({run.communicate()[0] for run in runs}) == 1
    assert [run.returncode for run in runs] == [0, 0]
    calls = len(counter.read_text().splitlines())
    assert 4 <= calls <= 6
    # What was half-written or damaged is built anew.
    library = tmp_path / "cache" / _name()
    library.write_bytes(built.read_bytes()[:1000])
    assert subprocess.run([sys.executable, "-c", NORMALS], env=env, check=True, capture_output=True).returncode == 0
    assert len(counter.read_text().splitlines()) == 2 * calls
    assert library.stat().st_size == built.stat().st_size


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_sets_agree(isa):
    """A library runs on an older processor, with the same bits."""
    code = (
        "import torch, pgraft_fast.ops as o\n"
        "torch.manual_seed(0)\n"
        "x = torch.randn(3, 1000)\n"
        "t = torch.tensor([[1.1, -.4, .7, .2, 0., .3, 3, 0]])\n"
        "parts = [o.philox_normal(1, torch.arange(7), torch.tensor([0]), 1003), o.weighted_mse(x, x.sin(), x[:, 0])]\n"
        "parts += [y.float() for y in o.solver_step(x.half(), x, t, torch.tensor(0), return_log_prob=True)[::2]]\n"
        "parts += [o.reward_filter(x.view(250, 12), 'top_k', k=3).packed, *o.fixed_point_update(x, x, x, .1)]\n"
        "digest = [hash(tuple(p.flatten().tolist())) for p in parts]\n"
        "print(torch.ops.pgraft_fast_cpp.instruction_set(), *digest)"
    )
    name, *digest = python(code, PGRAFT_FAST_ISA=isa, PGRAFT_FAST_BACKEND="cpp").stdout.split()
    assert int(name) <= {"baseline": 0, "avx2": 2, "avx512": 512}[isa]
    assert digest == plain(code, PGRAFT_FAST_BACKEND="cpp").stdout.split()[1:]


def test_ahead_of_time_build(tmp_path):
    """PGRAFT_FAST_BUILD_EXT=1 puts the library beside its sources in the wheel's tree."""
    root = _shipped().parent
    code = (
        "import os, sys; sys.path.insert(0, 'csrc')\n"
        "from setuptools.dist import Distribution\n"
        "from aot import BuildWithLibrary\n"
        "import pgraft_fast.ops.extension as extension\n"
        "import shutil, aot\n"
        "def build(sources, target): target.parent.mkdir(parents=True, exist_ok=True); target.write_text('library')\n"
        "extension.build = build\n"
        "tree = {'packages': ['pgraft_fast_csrc'], 'package_dir': {'pgraft_fast_csrc': 'csrc'}}\n"
        "command = BuildWithLibrary(Distribution({'script_name': 'setup.py', **tree}))\n"
        "command.ensure_finalized()\n"
        "for asked in '10':\n"
        "    os.environ['PGRAFT_FAST_BUILD_EXT'] = asked\n"
        f"    command.build_lib = os.path.join({str(tmp_path)!r}, asked)\n"
        "    command.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for setting in "10":
        assert (tmp_path / setting / "pgraft_fast_csrc").is_dir()
        assert (tmp_path / setting / "pgraft_fast_csrc" / _name()).exists() == (setting == "1")


def _shipped():
    import pgraft_fast_csrc

    return next(path for path in map(Path, pgraft_fast_csrc.__path__) if path.is_dir())


def _name():
    return library_name(_shipped())
