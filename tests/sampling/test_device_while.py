"""Loops that the data end: on the host, and what a machine without a GPU can tell of those in CUDA graphs."""

import contextlib
import shutil

import pytest
import torch

from pgraft_fast.errors import BackendError, InputError
from pgraft_fast.ops import nvcc
from pgraft_fast.ops.build import put
from pgraft_fast.sampling import device_while as module
from pgraft_fast.sampling.device_while import device_while


def count_down(start, limit):
    """(iterations, what is left) of a loop that takes one away until nothing is left."""
    left = torch.tensor([start], dtype=torch.int32)
    done = device_while(left, lambda: left.sub_(1), limit)
    assert done.dtype is torch.int32 and done.shape == ()
    return int(done), int(left)


@pytest.mark.parametrize(
    ("start", "limit", "done"), [(5, 100, 5), (5, 5, 5), (5, 3, 3), (5, 0, 0), (0, 100, 0), (-2, 4, 4)]
)
def test_on_the_host(start, limit, done):
    assert count_down(start, limit) == (done, start - done)


def test_until_convergence():
    x, moving = torch.tensor([0.2, 1.4], dtype=torch.float64), torch.ones((), dtype=torch.int32)

    def body():
        following = x.cos()
        moving.copy_((following - x).abs().amax() >= 1e-9)
        x.copy_(following)

    done = int(device_while(moving, body, 1000))
    # The error shrinks by |sin x| = 0.6736 a time, from 0.66 to about 2e-9.
    assert 45 <= done <= 60
    assert torch.allclose(x, torch.full_like(x, 0.7390851332151607), rtol=0, atol=2e-9)


def test_bad_inputs():
    flag = torch.ones(1, dtype=torch.int32)
    for condition, limit, pool, message in [
        (1, 1, None, "condition is a int: a tensor of one int32 is needed"),
        (flag.long(), 1, None, r"condition is torch.int64 \(1,\): one torch.int32 is needed"),
        (flag.expand(2), 1, None, r"condition is torch.int32 \(2,\): one torch.int32 is needed"),
        (flag, -1, None, r"limit=-1 is not a number of iterations: 0 ... 2\^31 - 1 is needed"),
        (flag, 2**31, None, "limit=2147483648 is not"),
        (flag, 1.0, None, r"limit=1.0 is not"),
        (flag, 1, (0, 1), "pool is a tuple: a torch.cuda.MemPool is needed"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            device_while(condition, lambda: None, limit, pool=pool)
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The library for three generations of GPUs."""
    try:
        nvcc.find_nvcc()
    except BackendError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("nvcc") / "graph_while.so"
    nvcc.build(path, ["80", "90", "100"])
    return path


def test_compile(built):
    library = nvcc.open_library(built)
    for name in ("begin", "end", "prepare", "error"):
        assert hasattr(library, f"pgraft_while_{name}")
    nvcc.check(library, 0)
    with pytest.raises(BackendError, match="device_while: CUDA error 1: invalid argument"):
        nvcc.check(library, 1)


def test_first_use(built, tmp_path, monkeypatch):
    """Built once into the cache, under a name that holds the architecture; a driver too old is named."""
    calls = []

    def build(target, architectures):
        calls.append(target)
        put(shutil.copy(built, tmp_path / "copy"), target)

    monkeypatch.setenv("PGRAFT_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(nvcc, "build", build)
    monkeypatch.setattr(nvcc, "check", lambda library, status: None)
    nvcc.load.__wrapped__(0)
    nvcc.load.__wrapped__(0)
    assert [path.parent for path in calls] == [tmp_path]
    assert "-sm_90-" in calls[0].name

    def refuse(library, status):
        raise BackendError("device_while: CUDA error 35: too old")

    monkeypatch.setattr(nvcc, "check", refuse)
    with pytest.raises(BackendError, match=r"too old; .*\.so is built anew once it is removed$"):
        nvcc.load.__wrapped__(0)


def test_without_nvcc(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDACXX", "no-such-nvcc")
    with pytest.raises(BackendError, match=r"device_while needs nvcc and found none \(no-such-nvcc\): install"):
        nvcc.build(tmp_path / "library.so", ["90"])
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho 'nvcc fatal   : Unsupported gpu architecture' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(broken))
    with pytest.raises(BackendError, match=r"failed with status 1: nvcc fatal   : Unsupported gpu architecture$"):
        nvcc.build(tmp_path / "library.so", ["90"])
    assert list(tmp_path.iterdir()) == [broken]


class Recorder:
    """Stands in for the library and for streams: what was called, and what the library answers."""

    cuda_stream = 7

    def __init__(self, begin=0, end=0):
        self.calls, self.answers = [], {"begin": begin, "end": end}

    def pgraft_while_begin(self, *arguments):
        self.calls.append("begin")
        return self.answers["begin"]

    def pgraft_while_end(self, *arguments):
        self.calls.append("end")
        return self.answers["end"]

    def pgraft_while_error(self, status):
        return b"refused"


def capture(monkeypatch, library, body):
    monkeypatch.setattr(nvcc, "load", lambda device: library)
    monkeypatch.setattr(module, "_free_stream", Recorder)
    monkeypatch.setattr(torch.cuda, "current_stream", Recorder)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "use_mem_pool", contextlib.nullcontext)
    return module._capture(torch.ones(1, dtype=torch.int32), body, 3, object())


def test_a_capture_that_began_is_ended(monkeypatch):
    library = Recorder()
    assert capture(monkeypatch, library, lambda: library.calls.append("body")).dtype is torch.int32
    assert library.calls == ["begin", "body", "end"]
    # The error of the body goes before that of the capture it spoiled.
    library = Recorder(end=900)
    with pytest.raises(ZeroDivisionError):
        capture(monkeypatch, library, lambda: 1 // 0)
    assert library.calls == ["begin", "end"]
    for library, calls in [(Recorder(begin=1), ["begin"]), (Recorder(end=1), ["begin", "end"])]:
        with pytest.raises(BackendError, match="device_while: CUDA error 1: refused"):
            capture(monkeypatch, library, lambda: None)
        assert library.calls == calls
