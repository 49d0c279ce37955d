"""Launches that go to the driver directly, since Triton's own way takes the host longer than a small kernel runs.

Triton compiles a kernel for the types of its arguments, for pointers and integers that are multiples of 16, and for
integers that are 1. The key of a launch holds just that. The first launch of a key goes through Triton, the others call
the kernel that it compiled.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import Parameter
from triton.runtime import JITFunction, driver

_UNSPECIALISED = (float, bool, type(None))
_hooks = triton.knobs.runtime
# Key of a launch -> how the compiled kernel is called, and the source, whose id stands in the key.
_ready: dict[Any, Any] = {}


def launch(kernel, grid, args, constants):
    """kernel[grid](*args, **constants), on the device of the first argument, a tensor.

    args: the kernel's first parameters, in order: tensors, numbers, None. constants: its other parameters, all
    constexpr, and options of the compiler such as num_warps. Always through Triton in its interpreter, on AMD's GPUs,
    for what is not on a GPU, and while hooks of Triton wait for launches.
    """
    device = args[0].get_device()
    if device < 0 or not isinstance(kernel, JITFunction):
        kernel[grid](*args, **constants)
        return
    if device != driver.active.get_current_device():
        with torch.cuda.device(device):
            launch(kernel, grid, args, constants)
        return
    key, values = (None, ()) if torch.version.hip else key_and_values(kernel, device, args, constants)
    entry = _ready.get(key)
    if entry is None or _watched(kernel):
        compiled = kernel[grid](*args, **constants)
        if key is not None and compiled is not None:
            rest = [constants[name] for name in kernel.arg_names[len(args) :]]
            _ready[key] = compiled.run, compiled.function, compiled.packed_metadata, rest, kernel
        return
    run, function, metadata, rest, _ = entry
    x, y, z = (*grid, 1, 1)[:3]
    run(x, y, z, driver.active.get_current_stream(device), function, metadata, None, None, None, *values, *rest)


def key_and_values(kernel, device, args, constants):
    """All that Triton specialises on, and the arguments with addresses in the place of tensors.

    The key is None where Triton must see the arguments: a tensor elsewhere, which it refuses, a subclass of tensors.
    """
    key: list[Any] = [id(kernel), device, *constants.items()]
    values: list[Any] = []
    for x in args:
        kind = type(x)
        if kind is Tensor or kind is Parameter:
            if x.get_device() != device:
                return None, values
            value = x.data_ptr()
            key.append((x.dtype,) if value % 16 else x.dtype)
            values.append(value)
            continue
        values.append(x)
        if kind is int:
            if -0x80000000 <= x < 0x80000000:
                key.append(1 if x == 1 else 0 if x % 16 else 16)
            else:
                key.append((x % 16 == 0, x < 2**63))
        elif kind in _UNSPECIALISED:
            key.append(kind)
        else:
            return None, values
    return tuple(key), values


def _watched(kernel):
    """Whether someone waits for launches by Triton."""
    enter, leave = _hooks.launch_enter_hook, _hooks.launch_exit_hook
    return getattr(enter, "calls", enter) or getattr(leave, "calls", leave) or kernel.pre_run_hooks
