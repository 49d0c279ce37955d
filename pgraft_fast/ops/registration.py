"""Registration with torch.library: what torch.compile, export and tensor subclasses see of the operations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_library = torch.library.Library("pgraft_fast", "DEF")
_PLAIN = (Tensor, nn.Parameter, type(None))


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define pgraft_fast::<schema>. run: the implementation on any device. fake: shapes and dtypes alone."""
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pgraft_fast::{name}", fake, lib=_library)
    return getattr(torch.ops.pgraft_fast, name)


def traced(*tensors: Tensor | None) -> bool:
    """Whether a call must go through the dispatcher: while compiling, or for tensor subclasses.

    Else the implementation is called directly, which saves about ten microseconds.
    """
    for x in tensors:
        if type(x) not in _PLAIN:
            return True
    return torch.compiler.is_compiling()
