"""Answers and states that no network made, put into a rehearsed call: they tell more of its loop than real ones."""

from typing import Any

import torch
from torch import Tensor

from pgraft_fast.pipelines.explain import NotExplainedError
from pgraft_fast.pipelines.fitting import Output, fits
from pgraft_fast.pipelines.rules import Explanation
from pgraft_fast.pipelines.trees import output_like

# Powers of ten of their values: a limit that real answers stay below acts on some of them. float16 ends at 65,504.
_LEAST, _MOST, _MOST_IN_HALF = -1.0, 4.0, 2.0


class Probe:
    """`answer` in the place of each call of a network, then `check` of what the loop made of them.

    A choice that the loop makes neither for real states nor for drawn ones is not seen.
    """

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._answers: list[Any] = []

    def answer(self, blank: Any, place: int) -> Any:
        """Of the form of `blank`. place: of the call in its iteration."""
        made = output_like(blank, self._drawn)
        self._answers = [*self._answers[:place], made]
        return made

    def state(self, x: Tensor) -> Tensor:
        """Like the states x."""
        return self._drawn(x)

    def check(self, explanation: Explanation, x: Tensor, out: Tensor) -> None:
        """Raises NotExplainedError where `out`, for states like x, is not as explained."""
        pairs = zip(explanation.calls, self._answers, strict=True)
        parts = [part for rule, made in pairs if rule.part is not None for part in rule.part.of(made, x)]
        if not fits(explanation, Output(parts, out)):
            raise NotExplainedError("its output is no sum of other answers of its denoiser")

    def _drawn(self, blank: Tensor) -> Tensor:
        if not blank.is_floating_point():
            return blank
        most = _MOST_IN_HALF if blank.dtype is torch.float16 else _MOST
        sizes = 10.0 ** (_LEAST + (most - _LEAST) * torch.rand(blank.shape, generator=self._generator))
        return (sizes * torch.randn(blank.shape, generator=self._generator)).to(blank)
