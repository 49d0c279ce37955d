"""Direct launches: which calls go through Triton, what a compiled kernel gets. A stand-in plays Triton and the GPU."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton.compiler")

import triton
import triton.language as tl
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction, native_specialize_impl

from pgraft_fast_kernels import direct_launch
from pgraft_fast_kernels.direct_launch import key_and_values, launch

MEMORY = torch.zeros(64)
X, Y, SHIFTED = MEMORY[:8], MEMORY[16:24], MEMORY[1:9]
CONSTANTS = {"BLOCK": 32, "CLIP": True, "num_warps": 4}


def _scale_fwd_kernel(x_ptr, y_ptr, null_ptr, n, factor, CLIP: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    pass


class Played:
    """A kernel whose launches by Triton, and whose direct ones, are written down."""

    def __init__(self) -> None:
        self.kernel = JITFunction(_scale_fwd_kernel)
        self.kernel.run = self.by_triton  # type: ignore[method-assign]
        self.through, self.direct = [], []

    def by_triton(self, *args, grid, warmup, **constants):
        self.through.append((grid, args, constants))
        number = len(self.through)
        return SimpleNamespace(
            run=lambda *args: self.direct.append(args), function=f"function {number}", packed_metadata="metadata"
        )

    def counts(self, *args, grid=(3,), **constants):
        launch(self.kernel, grid, args, CONSTANTS | constants)
        return len(self.through), len(self.direct)


@pytest.fixture
def played(monkeypatch):
    device = [0]
    gpu = SimpleNamespace(get_current_device=lambda: device[0], get_current_stream=lambda device: f"stream {device}")
    monkeypatch.setattr(triton.runtime.driver, "_active", gpu)
    monkeypatch.setattr(torch.Tensor, "get_device", lambda x: 0)
    monkeypatch.setattr(direct_launch, "_ready", {})
    return Played()


def test_the_second_call_goes_to_the_driver_with_all_arguments(played):
    assert played.counts(X, Y, None, 7, 0.5) == (1, 0)
    assert played.through == [((3,), (X, Y, None, 7, 0.5), CONSTANTS)]
    assert played.counts(Y, X, None, 9, 2.5, grid=(5, 2)) == (1, 1)
    # Grid, stream, what is run, its metadata, three hooks, then the parameters in the order of the kernel.
    start = (5, 2, 1, "stream 0", "function 1", "metadata", None, None, None)
    assert played.direct == [(*start, Y.data_ptr(), X.data_ptr(), None, 9, 2.5, True, 32)]


@pytest.mark.parametrize(
    ("args", "constants"),
    [
        ((X.half(), Y, None, 7, 0.5), {}),
        ((SHIFTED, Y, None, 7, 0.5), {}),
        ((X, Y, Y, 7, 0.5), {}),
        ((X, Y, None, 1, 0.5), {}),
        ((X, Y, None, 16, 0.5), {}),
        ((X, Y, None, 2**31, 0.5), {}),
        ((X, Y, None, 7, 3), {}),
        ((X, Y, None, 7, 0.5), {"BLOCK": 64}),
        ((X, Y, None, 7, 0.5), {"CLIP": False}),
        ((X, Y, None, 7, 0.5), {"num_warps": 8}),
    ],
)
def test_what_triton_specialises_on_goes_through_triton_again(played, args, constants):
    played.counts(X, Y, None, 7, 0.5)
    assert played.counts(*args, **constants) == (2, 0)
    assert played.counts(*args, **constants) == (2, 1)
    assert played.direct[0][4] == "function 2"
    assert played.counts(X, Y, None, 7, 0.5) == (2, 2)
    assert played.direct[1][4] == "function 1"


def test_hooks_see_launches_by_triton(played, monkeypatch):
    played.counts(X, Y, None, 7, 0.5)
    for name in ("launch_enter_hook", "launch_exit_hook"):
        with monkeypatch.context() as patch:
            patch.setattr(triton.knobs.runtime, name, lambda metadata: None)
            before = len(played.through)
            assert played.counts(X, Y, None, 7, 0.5) == (before + 1, 0)
    hook = triton.knobs.runtime.launch_enter_hook
    hook.add(print)
    assert played.counts(X, Y, None, 7, 0.5) == (4, 0)
    hook.remove(print)
    played.kernel.add_pre_run_hook(lambda *args, **constants: None)
    assert played.counts(X, Y, None, 7, 0.5) == (5, 0)
    played.kernel.pre_run_hooks.clear()
    assert played.counts(X, Y, None, 7, 0.5) == (5, 1)


def test_triton_sees_what_it_may_refuse(played, monkeypatch):
    """A tensor in another memory, a subclass of tensors, a number of an unknown type."""
    elsewhere = torch.zeros(8)
    monkeypatch.setattr(torch.Tensor, "get_device", lambda x: -1 if x is elsewhere else 0)

    class Wrapped(torch.Tensor):
        pass

    strange = [(X, elsewhere, None, 7, 0.5), (X, Y.as_subclass(Wrapped), None, 7, 0.5), (X, Y, None, 7, 1j)]
    for count, args in enumerate(strange, 1):
        assert played.counts(*args) == (2 * count - 1, 0)
        assert played.counts(*args) == (2 * count, 0)
    assert played.counts(elsewhere, elsewhere, None, 7, 0.5) == (7, 0)
    assert direct_launch._ready == {}


def test_the_device_is_that_of_the_first_tensor(played, monkeypatch):
    devices = []

    def switch(device):
        devices.append(device)
        triton.runtime.driver.active.get_current_device = lambda: device
        return nullcontext()

    monkeypatch.setattr(torch.Tensor, "get_device", lambda x: 1)
    monkeypatch.setattr(torch.cuda, "device", switch)
    played.counts(X, Y, None, 7, 0.5)
    assert played.counts(X, Y, None, 7, 0.5) == (1, 1)
    assert devices == [1] and played.direct[0][3] == "stream 1"
    monkeypatch.setattr(torch.Tensor, "get_device", lambda x: 0)
    assert played.counts(X, Y, None, 7, 0.5) == (2, 1)
    assert devices == [1, 0]


WHOLE = st.sampled_from([0, 1, 2, 16, -16, 17, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**40, 2**63, 2**63 + 1])
TENSOR = st.builds(
    lambda first, dtype: torch.zeros(32, dtype=dtype)[first:],
    st.integers(0, 9),
    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.uint8]),
)
ANY = st.one_of(WHOLE, WHOLE, TENSOR, TENSOR, st.none(), st.booleans(), st.floats(-2, 2))


@given(ANY, ANY)
def test_equal_keys_of_drawn_arguments_are_one_kernel_to_triton(a, b):
    keys = [key_and_values(None, -1, (X, x), CONSTANTS)[0] for x in (a, b)]
    to_triton = [native_specialize_impl(CUDABackend, x, False, True, True) for x in (a, b)]
    assert (keys[0] == keys[1]) == (to_triton[0] == to_triton[1])
