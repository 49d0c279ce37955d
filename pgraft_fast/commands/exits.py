"""How a command ends: its exit status, and one line for what went wrong."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from pgraft_fast.errors import PgraftError, RankError, StoppedError
from pgraft_fast.ranks.environment import of_ranks, speaks


def status_of(run: Callable[[], int | None], args: Sequence[str] | None) -> int:
    """Run a command. Returns its exit status, see `pgraft_fast.cli`. args: for a log of what nobody expected."""
    try:
        return run() or 0
    except StoppedError as error:
        # A launcher would take another status for a failure.
        return _fail(error, 0 if of_ranks() else 130)
    except RankError as error:
        return _fail(error, 70)
    except PgraftError as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except BrokenPipeError:
        # What is left in the buffers has nowhere to go when the interpreter ends.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    except Exception as error:
        if os.environ.get("PGRAFT_FAST_TRACEBACK", "") not in ("", "0"):
            raise
        from pgraft_fast.commands.surprise import message_of

        return _fail(message_of(error, sys.argv[1:] if args is None else args), 70)


def _fail(error: PgraftError | str, status: int) -> int:
    # What one rank has met, all of them raise; the first one tells it.
    if isinstance(error, PgraftError) and not speaks():
        return status
    # The terminal may be gone, too; without a stderr, print would take stdout.
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(f"pgraft-fast: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return status
