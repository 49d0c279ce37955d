"""Errors that a user can mend: one line that names the input and what to do; and which errors mean full memory."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager


class PgraftError(Exception):
    """Base of every error that this package raises on purpose. Its text holds names and texts of files: what a terminal
    would obey in them is written out.
    """

    def __str__(self) -> str:
        return printable(" ".join(super().__str__().splitlines()))


class InputError(PgraftError, ValueError):
    """The input is wrong. The message is one line: what was given, what is allowed."""


class CheckpointError(PgraftError):
    """A saved file is missing, damaged or belongs to another run."""


class RewardError(PgraftError):
    """A reward raised, returned the wrong shape, or marked too many samples invalid."""


class StorageError(PgraftError, OSError):
    """The run folder cannot be written: permission, lock, or no space left."""

    def __str__(self) -> str:
        return printable(" ".join(str(self.args[0]).splitlines())) if self.args else ""


class BackendError(PgraftError):
    """A backend was asked for by name and cannot run: no compiler, no Triton, no device for it."""


class StoppedError(PgraftError):
    """The run was asked to stop and can be resumed."""


class OutOfTimeError(PgraftError):
    """The budget ended within a round, which is dropped."""


class RankError(PgraftError):
    """Another rank of the run has failed, or is gone."""


# What changes a terminal or the order in which a line is read: controls, marks of direction, ends of lines; the tags
# and other characters that nobody sees; halves of a pair, which no encoding has. Joiners are part of words and emoji.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """The text with what a terminal would obey instead of show, such as an escape sequence, written out: "\\x1b[2J"."""
    return _UNSEEN.sub(lambda match: ascii(match[0])[1:-1], text)


def in_a_line(text: str) -> str:
    """The same on one line, white space as single blanks."""
    return printable(" ".join(text.split()))


@contextmanager
def told_as_damage(what: object) -> Iterator[None]:
    """Using what a file holds: an error that its contents cause, such as a missing key or another shape, is a
    CheckpointError of one line. what: the file or folder.
    """
    try:
        yield
    except PgraftError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = in_a_line(f"{type(error).__name__}: {error}")
        raise CheckpointError(f"{what}: damaged, or of another version ({reason[:200]})") from error


# How those say it that raise a plain RuntimeError. The last line is cuDNN short of work space; other causes of the same
# text end in the same error at the smallest batch.
_FULL_MEMORY = re.compile(
    r"out[ _]?of[ _]?memory"  # CUDA, HIP, MPS and XPU, with CUDA_ERROR_OUT_OF_MEMORY
    r"|(?:can'?t|cannot|could not|unable to|failed to) allocate|not enough memory|insufficient memory"
    r"|bad_alloc|bad allocation|invalid buffer size|storage size calculation overflowed"
    r"|status_alloc_failed|(?:device|host)_allocation_failed|(?:cuda|hip)?error_?memory_?allocation|resource_exhausted"
    r"|rocblas_status_memory_error|miopenstatusallocfailed"
    r"|cudnn_status_not_supported|valid cudnn algorithm|unable to find an engine to execute",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the memory of a device or of the machine was full: by its type, or by an allocator's wording; or its
    `__cause__` says so.

    Errors of this package are read by their cause alone: their words may be those of somebody else. A kernel that asks
    for more shared memory than the device has (Triton's OutOfResources) is none: fewer rows would not help it.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if isinstance(error, MemoryError) or "OutOfMemoryError" in kinds:
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError) and _FULL_MEMORY.search(str(error)):
            return True
        error = error.__cause__
    return False
