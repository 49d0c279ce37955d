"""A graph cache without CUDA."""

from collections.abc import Callable

from pgraft_fast.sampling.graphs import Captured, GraphCache


class OtherCache(GraphCache):
    """Captured in another way: capture(function, inputs, generators)."""

    def __init__(self, capture: Callable[..., Captured], memory_limit: int | None = None) -> None:
        super().__init__(memory_limit)
        self.other = capture

    def _capture(self, function, inputs, generators):
        return self.other(function, inputs, generators)
