"""A call once more without its loop: whether the pipeline makes the same of the last state."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgraft_fast.pipelines.explain import NotExplainedError

# Of results, as a share of the largest value: kernels that are chosen otherwise the second time.
ALLOWED = 1e-3


class Randomness:
    """The states of the generators of a call, the default ones among them."""

    def __init__(self, generator: Any) -> None:
        self._own = listed(generator)
        self._states = [own.get_state() for own in self._own]
        self._host = torch.get_rng_state()
        self._devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def put_back(self) -> None:
        """As they were."""
        for own, state in zip(self._own, self._states, strict=True):
            own.set_state(state)
        torch.set_rng_state(self._host)
        torch.cuda.set_rng_state_all(self._devices)

    def rehearse(self, call: Callable[[], Any], wanted: Any, allowed: float = ALLOWED) -> str | None:
        """From the states of here: why call() returns something else than wanted; None where it does not.

        allowed: difference, as a share of the largest value.
        Generators are afterwards as they were before this.
        """
        after = Randomness(self._own)
        self.put_back()
        try:
            result = call()
        except NotExplainedError as error:
            return str(error)
        except Exception as error:
            return f"without it the pipeline raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        finally:
            after.put_back()
        return None if _equal(result, wanted, allowed) else "its result depends on more than the last state"


def listed(generator: Any) -> list[torch.Generator]:
    """The generators of a call: one, a list, or None."""
    if generator is None:
        return []
    return list(generator) if isinstance(generator, (list, tuple)) else [generator]


def _equal(a: Any, b: Any, allowed: float) -> bool:
    mine, others = list(_leaves(a)), list(_leaves(b))
    return len(mine) == len(others) and all(_close(x, y, allowed) for x, y in zip(mine, others, strict=True))


def _leaves(value: Any) -> Iterator[Any]:
    """What a pipeline returned: arrays, and whatever else."""
    if isinstance(value, dict):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, Tensor):
        yield value.detach().float().cpu().numpy()
    elif hasattr(value, "size") and hasattr(value, "mode"):
        # A picture of Pillow.
        yield np.asarray(value, dtype=np.float32)
    else:
        yield value


def _close(a: Any, b: Any, allowed: float) -> bool:
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return type(a) is type(b) and (a == b or not isinstance(a, (bool, int, float, str)))
    if a.shape != b.shape or a.dtype.kind not in "fiub":
        return False
    size = max(1e-12, float(np.abs(b).max(initial=0.0)))
    return bool(np.abs(a.astype(np.float64) - b).max(initial=0.0) <= allowed * size)
