"""How an accelerated call begins: in the pipeline's own loop, watched in it, or as one that is understood."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

from pgraft_fast.pipelines.accelerated.kinds import Kinds, Like, OtherKindError
from pgraft_fast.pipelines.adapters.callback import PGraftCallback
from pgraft_fast.pipelines.denoisers import denoiser_of
from pgraft_fast.pipelines.views import target_of
from pgraft_fast.pipelines.watched import Understood

_LOG = logging.getLogger(__name__)
_CALLBACKS = ("callback", "callback_on_step_end")


@dataclass(frozen=True)
class Beginning:
    """like: what is known of such calls. understood: of this kind; of a watched call, of one with another scale of
    guidance, where there is one.
    """

    mode: Literal["plain", "watched", "known"]
    like: Like | None = None
    understood: Understood | None = None

    @classmethod
    def of(cls, pipe: Any, steps: Any, bound: dict[str, Any], known: Kinds) -> "Beginning":
        """Of a call of the pipeline with these arguments, by their names. steps: see `steps.steps_of`."""
        scheduler = target_of(pipe.scheduler)
        if steps is None or not _can_take_over(pipe, bound):
            return cls("plain")
        try:
            like = Like(known, target_of(pipe), scheduler, bound)
        except OtherKindError as error:
            if known.is_new(str(error)):
                tell(pipe, f"an argument is {error}, of which nothing is known")
            return cls("plain")
        if like.is_left:
            return cls("plain")
        understood = like.understood
        if understood is not None and not any(is_watched(getattr(pipe, name)) for name in understood.nets):
            return cls("known", like, understood)
        return cls("watched", like, like.scaled())


def tell(pipe: Any, why: str) -> None:
    """One log line for a loop that is left to itself."""
    _LOG.info("%s: such calls run in its own loop: %s", type(pipe).__name__, why)


def is_watched(net: Any) -> bool:
    """Whether somebody else sees or keeps what goes through it: hooks see the arguments as the pipeline gives them."""
    hooked = getattr(net, "_forward_hooks", None) or getattr(net, "_forward_pre_hooks", None)
    # Asked of the class first: a module looks long for what it does not have.
    net = vars(net).get("_modules", {}).get("_orig_mod", net)
    return bool(hooked) or (hasattr(type(net), "is_cache_enabled") and bool(net.is_cache_enabled))


def _can_take_over(pipe: Any, bound: dict[str, Any]) -> bool:
    """Whether nothing in the arguments or the denoiser asks for the pipeline's own loop."""
    if is_watched(denoiser_of(pipe)):
        return False
    callbacks = tuple(name for name in _CALLBACKS if bound.get(name) is not None)
    return not callbacks or (callbacks == _CALLBACKS[1:] and isinstance(bound[callbacks[0]], PGraftCallback))
