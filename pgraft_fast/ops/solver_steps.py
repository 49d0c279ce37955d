"""`solver_step` in a loop: the checks of one call serve all calls of the same shapes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pgraft_fast.ops.backend import launcher
from pgraft_fast.ops.registration import traced
from pgraft_fast.ops.solver_step import solver_step


class SolverSteps:
    """`solver_step` for many steps on states of one shape, dtype and layout: checked at the first, launched after it.

    counters[row]: the step counter of a row of `table`. The other arguments are those of `solver_step`. Call:
    (row, x, out, out_null, previous, noise, return_x_0) -> (x_s, x_0 or None).
    """

    def __init__(
        self,
        table: Tensor,
        counters: Sequence[Tensor],
        *,
        guidance: float = 1.0,
        guidance_rescale: float = 0.0,
        clip: float | None = None,
        dynamic_ratio: float | None = None,
        dynamic_limit: float = 1.0,
    ) -> None:
        self._table, self._counters = table, counters
        self._options = (guidance, guidance_rescale, clip, dynamic_ratio, dynamic_limit)
        self._scalars = (0, guidance, guidance_rescale, clip or 0.0, dynamic_ratio or 0.0, dynamic_limit)
        self._launch: Callable[..., object] | None = None
        self._like: tuple[object, ...] = ()

    def __call__(
        self,
        row: int,
        x: Tensor,
        out: Tensor,
        out_null: Tensor | None = None,
        previous: Tensor | None = None,
        noise: Tensor | None = None,
        return_x_0: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        others = (out, out_null, previous, noise)
        like = (x.shape, x.dtype, *(other is None or (other.shape, other.dtype) for other in others))
        plain = x.is_contiguous() and out.is_contiguous()
        for other in others[1:]:
            plain = plain and (other is None or other.is_contiguous())
        if self._launch is None or like != self._like or not plain:
            return self._checked(row, x, out, out_null, previous, noise, return_x_0, like if plain else ())
        x_s = torch.empty_like(x)
        x_0 = torch.empty_like(x) if return_x_0 else None
        self._launch(
            x, out, out_null, previous, noise, self._table, self._counters[row], None, *self._scalars,
            x.shape[0], 0, x_s, x_0, None, None,
        )  # fmt: skip
        return x_s, x_0

    def _checked(
        self,
        row: int,
        x: Tensor,
        out: Tensor,
        out_null: Tensor | None,
        previous: Tensor | None,
        noise: Tensor | None,
        return_x_0: bool,
        like: tuple[object, ...],
    ) -> tuple[Tensor, Tensor | None]:
        guidance, rescale, clip, ratio, limit = self._options
        done = solver_step(
            x, out, self._table, self._counters[row], out_null=out_null, guidance=guidance, guidance_rescale=rescale,
            previous=previous, noise=noise, clip=clip, dynamic_ratio=ratio, dynamic_limit=limit, return_x_0=return_x_0,
        )  # fmt: skip
        launched = like and not traced(x, out) and (previous is None or previous.dtype is x.dtype)
        self._launch = launcher("solver_step", x) if launched else None
        self._like = like
        return done.x_s, done.x_0
