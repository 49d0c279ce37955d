"""Gates and readings of a case's providers: what fails or cannot run has no times; the others take turns."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pgraft_fast.ops import use_backend
from pgraft_fast_benchmarks.timing import Timer, timer_of

if TYPE_CHECKING:
    from pgraft_fast_benchmarks.harness import Case, Provider, Settings

# (ok, fail or skipped; why).
Verdicts = dict[str, tuple[str, str]]
# Seconds of a step, by the round in which they were read.
Readings = dict[int, float]


def check(provider: "Provider", verdicts: Verdicts) -> None:
    """Ask the gate of a provider and write its verdict."""

    def ask() -> None:
        with use_backend(provider.backend):
            reset(provider)
            wrong = provider.gate()
        if wrong is not None:
            verdicts[provider.name] = ("fail", wrong)

    verdicts[provider.name] = ("ok", "")
    tried(provider, verdicts, ask)


def tried(provider: "Provider", verdicts: Verdicts, work: Callable[[], Any]) -> Any:
    """work() of a provider with a green gate. If it raises, an optional provider is skipped from here on."""
    if verdicts[provider.name][0] != "ok":
        return None
    try:
        return work()
    except Exception as error:
        if not provider.optional and not isinstance(error, ModuleNotFoundError):
            raise
        verdicts[provider.name] = skipped(error)
    if torch.cuda.is_available():
        # After the handler: the exception held the frames that hold the tensors.
        gc.collect()
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
    return None


def skipped(error: Exception) -> tuple[str, str]:
    """The verdict over what cannot run, for want of memory, a compiler or a package."""
    return "skipped", f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"


def take(
    providers: Sequence["Provider"], verdicts: Verdicts, case: "Case", settings: "Settings"
) -> dict[str, Readings]:
    """A reading a round, or fewer where they take long; the order of the providers turns from round to round."""
    timer = timer_of(settings.device, settings.size)
    seconds: dict[str, Readings] = {provider.name: {} for provider in providers}
    plan: dict[str, tuple[int, int]] = {}
    for provider in providers:
        planned = tried(provider, verdicts, lambda: _plan(provider, timer, case, settings, seconds))  # noqa: B023
        plan[provider.name] = planned or (1, 0)
    # Those that are left out would leave the turns of the others uneven.
    passed = [provider for provider in providers if verdicts[provider.name][0] == "ok"]
    with _no_collection():
        for number in range(settings.rounds):
            turn = number % max(1, len(passed))
            for provider in (*passed[turn:], *passed[:turn]):
                calls, readings = plan[provider.name]
                if number * readings // settings.rounds != (number + 1) * readings // settings.rounds:
                    read = tried(provider, verdicts, lambda: _read(provider, timer, calls))  # noqa: B023
                    if read is not None:
                        seconds[provider.name][number] = read
    return seconds


def _plan(
    provider: "Provider", timer: Timer, case: "Case", settings: "Settings", seconds: dict[str, Readings]
) -> tuple[int, int]:
    """Calls in a reading, and readings, spread over the rounds. With a clock of its own, the first one is made here."""
    with use_backend(provider.backend):
        # What must be reset cannot be called twice in a reading.
        calls = timer.repeats(provider.run) if provider.reset is None and not provider.own_clock else 1
    read = _read(provider, timer, calls)
    budget = settings.budget if case.budget is None else case.budget
    readings = min(settings.rounds, max(case.least, int(budget / max(read * calls * provider.steps, 1e-9))))
    if not provider.own_clock:
        return calls, readings
    seconds[provider.name][-1] = read
    return calls, readings - 1


def _read(provider: "Provider", timer: Timer, calls: int) -> float:
    with use_backend(provider.backend):
        reset(provider)
        if provider.own_clock:
            return float(provider.run())
        # Not timed: brings back to a CPU's caches what other providers drove out.
        provider.run()
        reset(provider)
        return timer.read(provider.run, calls) / provider.steps


def reset(provider: "Provider") -> None:
    """Before a reading, outside of it."""
    if provider.reset is not None:
        provider.reset()


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
