"""What a reward is, and how its answers are checked."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pgraft_fast.errors import PgraftError, RewardError, in_a_line
from pgraft_fast.rewards.memory import in_parts
from pgraft_fast.rewards.returned import as_numbers
from pgraft_fast.rewards.urls import without_secrets

MAX_INVALID_SHARE = 0.05
_NAMED = 8

# (samples, prompts, sample ids, on_wait) -> numbers
Call = Callable[[Tensor, Sequence[str], Sequence[int], Callable[[], None]], object]


class Reward(Protocol):
    """reward(samples, prompts) -> one number a sample; higher is better, nan marks a sample that has none.

    samples: (B, ...) final samples; pictures are (B, C, H, W) in [-1, 1]. prompts: B strings. Returns B numbers:
    tensor, array or list; None in it is nan. What else a reward may have, none of it required:
    parameters `sample_ids` (B ints) and `on_wait` (called while it waits; may raise, which ends the wait);
    `name`, for messages; `prepare()`, what must be done once before the first call, outside its time-out; `close()`;
    `interrupt()`, which makes a call in another thread fail; `longest_call_seconds`, where it keeps its own time-out.
    """

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor: ...


class RewardTimeoutError(RewardError):
    """A reward did not answer in time."""


class RewardMisuseError(RewardError):
    """A reward breaks the protocol in a way that trying again cannot mend."""


def as_call(function: Callable[..., object]) -> Call:
    """A callable of (samples) or (samples, prompts), with or without sample_ids and on_wait, as one of all four."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return lambda samples, prompts, ids, on_wait: function(samples, prompts)
    extras = ("sample_ids", "on_wait")
    positional = [
        p for n, p in parameters.items() if n not in extras and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    two = len(positional) >= 2 or any(p.kind == p.VAR_POSITIONAL for p in parameters.values())

    def call(samples: Tensor, prompts: Sequence[str], ids: Sequence[int], on_wait: Callable[[], None]) -> object:
        named = {n: v for n, v in zip(extras, (ids, on_wait), strict=True) if n in parameters}
        return function(samples, prompts, **named) if two else function(samples, **named)

    return call


def name_of(reward: Callable[..., object]) -> str:
    """A name for messages."""
    return str(getattr(reward, "name", getattr(reward, "__name__", type(reward).__name__)))


def of_samples(ids: Sequence[int]) -> str:
    """ "sample 3", "samples 3 to 6" or "samples 3, 5, 9": for messages, at most eight of them named."""
    if len(ids) == 1:
        return f"sample {ids[0]}"
    if list(ids) == list(range(ids[0], ids[0] + len(ids))):
        return f"samples {ids[0]} to {ids[-1]}"
    rest = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"samples {', '.join(str(i) for i in ids[:_NAMED])}{rest}"


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """An error's text on one line of bounded length, without the passwords of URLs and what a terminal would obey."""
    text = without_secrets(in_a_line(str(error)))
    return text if len(text) <= limit else f"{text[:limit]}..."


def score(
    reward: Callable[..., object],
    samples: Tensor,
    prompts: Sequence[str],
    sample_id: Tensor,
    batch_size: int = 256,
    on_batch: Callable[[], None] | None = None,
) -> Tensor:
    """Rewards of all samples, (n,) float32 on the samples' device; nan where the reward gave none.

    on_batch() is called after every batch, and by rewards that take `on_wait` also while they wait; it may raise.
    batch_size: halved where memory is full.
    Raises RewardError, in one line, where the reward raises, returns another number of values, or leaves more than
    its `max_invalid_share` (5 % where it has none) of the samples without a finite one.
    """
    return finished(reward, score_batches(reward, samples, prompts, sample_id, batch_size, on_batch), sample_id)


def unasked(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Stands where no reward will be asked for. Raises RewardError."""
    raise RewardError("reward 'none': no reward was loaded, as none is asked for here")


def finite_rows(samples: Tensor) -> tuple[list[int], list[int]]:
    """Rows of samples without nan and inf, and those with one."""
    count = samples.shape[0]
    finite = torch.isfinite(samples).flatten(1).all(dim=1) if samples.numel() else torch.ones(count).bool()
    if bool(finite.all()):
        return list(range(count)), []
    return finite.nonzero().flatten().tolist(), (~finite).nonzero().flatten().tolist()


def score_batches(
    reward: Callable[..., object],
    samples: Tensor,
    prompts: Sequence[str],
    sample_id: Tensor,
    batch_size: int = 256,
    on_batch: Callable[[], None] | None = None,
) -> Tensor:
    """As `score`, for a part of the samples: how many have no finite reward is not looked at; see `finished`."""
    call, name = as_call(reward), name_of(reward)
    ids = sample_id.tolist()

    def ask(rows: slice) -> Tensor:
        rewards = evaluate(call, name, samples[rows].detach(), prompts[rows], ids[rows], on_batch)
        if on_batch is not None:
            on_batch()
        return rewards

    with torch.no_grad():
        parts, _ = in_parts(ask, samples.shape[0], batch_size, name)
    return torch.cat([torch.empty(0, device=samples.device), *parts])


def finished(reward: Callable[..., object], rewards: Tensor, sample_id: Tensor) -> Tensor:
    """Rewards (n,) of all samples with nan for every one that is not finite. Raises RewardError where these are more
    than the reward's `max_invalid_share`.
    """
    name, ids = name_of(reward), sample_id.tolist()
    invalid = ~torch.isfinite(rewards)
    n_invalid = int(invalid.sum())
    share = float(getattr(reward, "max_invalid_share", MAX_INVALID_SHARE))
    if n_invalid > share * rewards.numel():
        first = ids[int(invalid.nonzero()[0, 0])]
        raise RewardError(
            f"reward {name!r} gave no finite number for {n_invalid} of {rewards.numel()} samples "
            f"(the first is sample {first}); at most {math.floor(100 * share)} % may fail"
        )
    return torch.where(invalid, torch.full_like(rewards, torch.nan), rewards)


def evaluate(
    call: Call,
    name: str,
    batch: Tensor,
    prompts: Sequence[str],
    ids: Sequence[int],
    on_wait: Callable[[], None] | None = None,
) -> Tensor:
    """One call with its answer checked: (B,) float32 on the samples' device, nan and inf left in.

    Raises RewardError naming the reward and the samples; other errors of this package pass unchanged.
    """
    where, version = of_samples(ids), _version(batch)
    try:
        values = call(batch, prompts, ids, on_wait or _nothing)
    except RewardError as error:
        if str(error).startswith("reward "):
            raise
        raise type(error)(f"reward {name!r}: {error} (at {where})") from error
    except PgraftError:
        raise
    except Exception as error:
        raise RewardError(f"reward {name!r} raised {type(error).__name__}: {one_line(error)} (at {where})") from error
    if _version(batch) != version:
        raise RewardMisuseError(f"reward {name!r} changes its samples in place; let it work on samples.clone()")
    try:
        rewards = as_numbers(values).to(batch.device)
    except Exception as error:
        # A type of another library may refuse to become an array with any exception.
        reason = error if isinstance(error, ValueError) else f"{type(values).__name__}, not numbers: {error}"
        raise RewardError(f"reward {name!r} returned {one_line(reason)} (at {where})") from error
    if rewards.shape != (batch.shape[0],):
        raise RewardError(
            f"reward {name!r} returned shape {tuple(rewards.shape)} for {batch.shape[0]} samples; "
            f"it must be ({batch.shape[0]},) (at {where})"
        )
    return rewards


def _version(samples: Tensor) -> int:
    """Counts changes in place; tensors made in inference mode have no such counter."""
    return 0 if samples.is_inference() else samples._version


def _nothing() -> None:
    pass
