"""What is done when a reward hangs, crashes or answers nonsense."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeVar, get_type_hints

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from pgraft_fast.errors import InputError, PgraftError, RewardError, is_out_of_memory
from pgraft_fast.rewards.batch import Batch
from pgraft_fast.rewards.halving import rewards_of_the_rest
from pgraft_fast.rewards.memory import in_parts
from pgraft_fast.rewards.order import answers_out_of_order
from pgraft_fast.rewards.protocol import (
    MAX_INVALID_SHARE,
    RewardMisuseError,
    RewardTimeoutError,
    as_call,
    evaluate,
    finite_rows,
    name_of,
    of_samples,
    one_line,
)
from pgraft_fast.rewards.worker import HungError, Worker

T = TypeVar("T")
_LOG = logging.getLogger("pgraft_fast.rewards")
_PREPARE_SECONDS = 3600.0
_OWN_CLOCK_GRACE = 5.0


# Strict in each number: a strict dataclass takes no table.
_CLOSED = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Policy:
    """on_failure: "retry", the batch again, at most `retries` times, then stop; "drop", samples that fail get nan,
    which is never selected; "stop".

    timeout_seconds: for one batch. max_dropped_share: of the samples of a round, for "drop"; more stops the run.
    Raises InputError. It is also the table [policy] of a config.
    """

    __pydantic_config__ = _CLOSED

    on_failure: Literal["retry", "drop", "stop"] = "retry"
    retries: Annotated[int, Field(ge=0, le=10**6, strict=True)] = 2
    timeout_seconds: Annotated[float, Field(gt=0, le=1e6, strict=True)] = 300.0
    max_dropped_share: Annotated[float, Field(ge=0, le=1, strict=True)] = MAX_INVALID_SHARE

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Policy, include_extras=True).items():
            try:
                TypeAdapter(kind, config=_CLOSED).validate_python(getattr(self, name))
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                raise InputError(
                    f"policy.{name} = {getattr(self, name)!r}: {message[0].lower()}{message[1:]}"
                ) from error

    @property
    def tries(self) -> int:
        return 1 + (self.retries if self.on_failure == "retry" else 0)


class PolicedReward:
    """A reward under a policy: called in batches, in a thread of its own, without gradients, within a time-out.

    A failure is an exception, another number of values than samples, nan or inf, or no answer in time. Under "drop" a
    batch that fails is halved until the samples that fail are found, in at most 64 calls and one more time-out; one
    that hangs is dropped whole. Samples that are themselves not finite never reach the reward.
    batch_size: of one call, all samples at once where None; halved where memory is full. check_order: ask for four
    samples once more, together and one by one, at the first batch. log: gets a line for every failure that does not
    stop the run.
    """

    def __init__(
        self,
        reward: Callable[..., object],
        policy: Policy = Policy(),
        *,
        name: str | None = None,
        batch_size: int | None = None,
        check_order: bool = False,
        log: Callable[[str], None] = _LOG.warning,
    ) -> None:
        self.reward, self.policy, self.batch_size, self.log = reward, policy, batch_size, log
        self.name = name_of(reward) if name is None else name
        self.max_invalid_share = policy.max_dropped_share if policy.on_failure == "drop" else 0.0
        self._call, self._worker = as_call(reward), Worker(f"reward {self.name}")
        self._interrupt: Callable[[], None] | None = getattr(reward, "interrupt", None)
        self._prepared, self._check_order = False, check_order

    def __call__(
        self,
        samples: Tensor,
        prompts: Sequence[str],
        sample_ids: Sequence[int] | None = None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """(B,) float32 on the samples' device; nan, under "drop" alone, where there is none.

        Raises RewardError in one line: the reward, the samples, what happened, what to do.
        """
        self._prepare(on_wait)
        count = samples.shape[0]
        ids = list(range(count)) if sample_ids is None else [int(i) for i in sample_ids]
        rewards = torch.full((count,), torch.nan, device=samples.device)
        index = self._finite(samples, ids)

        def ask(rows: slice) -> Tensor:
            rewards[index[rows]] = batch_rewards = self._batch(Batch(samples, prompts, ids).take(index[rows]), on_wait)
            return batch_rewards

        size = self.batch_size or max(1, count)
        _, fits = in_parts(ask, len(index), size, self.name)
        if fits < size:
            self.batch_size = fits
        return rewards

    def close(self) -> None:
        """End the thread, and what the reward itself holds."""
        self._worker.close()
        getattr(self.reward, "close", lambda: None)()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _prepare(self, on_wait: Callable[[], None]) -> None:
        if self._prepared:
            return
        try:
            self._in_time(getattr(self.reward, "prepare", lambda: None), _PREPARE_SECONDS, "its start", on_wait)
        except RewardError as error:
            if str(error).startswith("reward "):
                raise
            raise type(error)(f"reward {self.name!r}: {error}") from error
        except PgraftError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {one_line(error)}"
            raise RewardError(f"reward {self.name!r} cannot start: it raised {text}") from error
        self._prepared = True

    def _finite(self, samples: Tensor, ids: Sequence[int]) -> list[int]:
        """Rows without nan and inf."""
        rows, others = finite_rows(samples)
        if not others:
            return rows
        bad = of_samples([ids[row] for row in others])
        text = f"reward {self.name!r} was not asked about {bad}: nan or inf in the sample itself"
        if self.policy.on_failure != "drop":
            raise RewardError(f'{text}; look at the model that drew it, or set policy.on_failure = "drop"')
        self.log(f"{text}; dropped")
        return rows

    def _batch(self, batch: Batch, on_wait: Callable[[], None]) -> Tensor:
        drops, tries = self.policy.on_failure == "drop", self.policy.tries
        failure = RewardError()
        for attempt in range(1, tries + 1):
            try:
                rewards = self._ask(batch, self._limit(), on_wait)
                self._look_at_order(batch, on_wait)
                bad = [i for i, good in zip(batch.ids, torch.isfinite(rewards).tolist(), strict=True) if not good]
                if not bad:
                    return rewards
                failure = RewardError(f"reward {self.name!r} gave no finite number for {of_samples(bad)}")
                if drops:
                    self.log(f"{failure}; dropped")
                    return torch.where(torch.isfinite(rewards), rewards, torch.nan)
            except RewardMisuseError:
                raise
            except RewardError as error:
                if len(batch.ids) > 1 and is_out_of_memory(error):
                    # Fewer at once: no failure of the reward.
                    raise
                failure = error
            if attempt < tries:
                self.log(f"{failure}; trying again, {attempt} of {self.policy.retries}")
        if not drops:
            tried = f", tried {tries} times" if tries > 1 else ""
            raise type(failure)(f"{failure}{tried}; {self._mend(failure)}") from failure
        if isinstance(failure, RewardTimeoutError):
            self.log(f"{failure}; dropped")
            return torch.full((len(batch.ids),), torch.nan, device=batch.samples.device)
        return self._halve(batch, failure, on_wait)

    def _halve(self, batch: Batch, failure: RewardError, on_wait: Callable[[], None]) -> Tensor:
        def ask(rows: Sequence[int], seconds: float) -> Tensor:
            return self._ask(batch.take(rows), min(seconds, self._limit()), on_wait)

        rewards = rewards_of_the_rest(ask, len(batch.ids), self.policy.timeout_seconds).to(batch.samples.device)
        bad = [i for i, good in zip(batch.ids, torch.isfinite(rewards).tolist(), strict=True) if not good]
        self.log(f"{failure}; {'dropped ' + of_samples(bad) if bad else 'all answered one half at a time'}")
        return rewards

    def _ask(self, batch: Batch, seconds: float, on_wait: Callable[[], None]) -> Tensor:
        device = batch.samples.device
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

        def call() -> Tensor:
            # The thread's own current stream and device would be the defaults.
            place = contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)
            with place:
                try:
                    return evaluate(self._call, self.name, batch.samples.detach(), batch.prompts, batch.ids)
                except SystemExit as error:
                    raise RewardError(
                        f"reward {self.name!r} called sys.exit({error.code!r}) (at {of_samples(batch.ids)})"
                    ) from error

        return self._in_time(call, seconds, of_samples(batch.ids), on_wait)

    def _in_time(self, function: Callable[[], T], seconds: float, where: str, on_wait: Callable[[], None]) -> T:
        try:
            return self._worker.run(function, seconds, on_wait, self._interrupt)
        except HungError as hung:
            left = "; its thread cannot be ended and may still be running" if hung.abandoned else ""
            raise RewardTimeoutError(
                f"reward {self.name!r} did not answer within {seconds:g} s (at {where}){left}"
            ) from hung

    def _limit(self) -> float:
        """A reward that keeps its own clock, and says how long it may take, is given that and a little."""
        own = getattr(self.reward, "longest_call_seconds", None)
        return self.policy.timeout_seconds if own is None else float(own) + _OWN_CLOCK_GRACE

    def _look_at_order(self, batch: Batch, on_wait: Callable[[], None]) -> None:
        if not self._check_order or len(batch.ids) < 2:
            return
        self._check_order = False

        def ask(rows: Sequence[int]) -> Tensor:
            return self._ask(batch.take(rows), self._limit(), on_wait)

        wrong = False
        # A reward that cannot take one sample alone is not thereby wrong.
        with contextlib.suppress(RewardError):
            wrong = answers_out_of_order(ask, len(batch.ids))
        if wrong:
            raise RewardMisuseError(
                f"reward {self.name!r} answers in another order than it is asked (at {of_samples(batch.ids)}): "
                "return one number a sample, in the order of the samples"
            )

    def _mend(self, failure: RewardError) -> str:
        late = "raise policy.timeout_seconds, " if isinstance(failure, RewardTimeoutError) else ""
        return f'mend the reward, {late}or set policy.on_failure = "drop"'
