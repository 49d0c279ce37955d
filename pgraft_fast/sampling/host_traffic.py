"""What a function takes from the host or gives back to it while it runs, which a CUDA graph would not do again."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten
_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_INDEXED = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default)
_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
_CHANGES = "a tensor that is made on the host is another one in each run"


class HostTrafficError(Exception):
    """A run that no graph can repeat, in words."""


@dataclass(frozen=True)
class _Brought:
    """A tensor of the host with its version then, and what was made of it on the device."""

    source: Tensor
    version: int
    made: Tensor


class HostTraffic:
    """Of runs of one function whose tensors lie on `device`.

    In a run within `learned()` what is brought from the host is kept; within `repeated()`, another run or a capture, a
    copy of what was kept takes the place of each transfer. What is made on the host of numbers and shapes alone is the
    same in each run of a graph's key. Raise HostTrafficError where it is not, and where a value is read back.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: list[_Brought] = []
        self._place = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def changed(self) -> bool:
        """Whether a tensor of the host has been written to since."""
        return any(brought.source._version != brought.version for brought in self._kept)

    @contextmanager
    def learned(self) -> Iterator[None]:
        """See the class."""
        self._kept.clear()
        with _Seen(self._device.type, self._learn), _Made(self._device.type):
            yield

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """See the class."""
        self._place = 0
        with _Seen(self._device.type, self._repeat), _Made(self._device.type):
            yield
        if self._place != len(self._kept):
            raise HostTrafficError("it brings more tensors from the host in some runs than in others")

    def _learn(self, bring: Any, source: Tensor) -> Tensor:
        if source.is_inference():
            raise HostTrafficError(_with_line("a tensor of the host is brought whose changes torch does not count"))
        made: Tensor = bring()
        # A copy: what was made may be written to.
        self._kept.append(_Brought(source, source._version, made.detach().clone()))
        return made

    def _repeat(self, bring: Any, source: Tensor) -> Tensor:
        if self._place == len(self._kept):
            raise HostTrafficError(_with_line(_CHANGES))
        brought = self._kept[self._place]
        self._place += 1
        if source.dtype is not brought.source.dtype or not torch.equal(source, brought.source):
            raise HostTrafficError(_with_line(_CHANGES))
        return brought.made


def is_watched() -> bool:
    """Whether what runs here is watched as one that a graph shall repeat."""
    return any(isinstance(mode, _Seen) for mode in _get_current_dispatch_mode_stack())


class _Seen(TorchDispatchMode):
    def __init__(self, device: str, bring: Any) -> None:
        super().__init__()
        self._device, self._bring = device, bring

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _ATEN.copy_.default and self._moves(args[1].device, args[0].device):
            made = self._bring(lambda: func(*args, **kwargs), args[1])
            return args[0] if made is args[0] else func(args[0], made)
        if func is _ATEN._to_copy.default and kwargs.get("device") is not None:
            if self._moves(args[0].device, torch.device(kwargs["device"])):
                out = self._bring(lambda: func(*args, **kwargs), args[0])
                return out.clone()
        elif _reads(func, args, kwargs) and any(self._is_here(leaf) for leaf in tree_leaves((args, kwargs))):
            raise HostTrafficError(_with_line(f"{func} reads a value back"))
        return func(*args, **kwargs)

    def _moves(self, source: torch.device, target: torch.device) -> bool:
        """Whether a copy brings something to the device. Raises HostTrafficError for the other direction."""
        if source.type == self._device and target.type != self._device:
            raise HostTrafficError(_with_line("a tensor of the device is brought to the host"))
        return source.type != self._device and target.type == self._device

    def _is_here(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.device.type == self._device


class _Made(TorchFunctionMode):
    """Tensors that are made of numbers on the device are made on the host and brought: else torch shows no copy."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS:
            device = kwargs.get("device")
            if device is None and func is Tensor.new_tensor:
                device = args[0].device
            data = kwargs.get("data", args[-1] if args else None)
            if device is not None and torch.device(device).type == self._device and not isinstance(data, Tensor):
                return func(*args, **{**kwargs, "device": "cpu"}).to(device)
        return func(*args, **kwargs)


def _reads(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host waits for a value, or for the size of a result."""
    if func in _INDEXED:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool(_READS.intersection(func.tags)) and kwargs.get("output_size") is None


def _with_line(what: str) -> str:
    """With the line that does it."""
    outer = [
        frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename and frame.filename != __file__
    ]
    return f"{what} ({outer[-1].filename}, line {outer[-1].lineno})" if outer else what
