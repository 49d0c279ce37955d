"""Errors that a user can mend: one line that names the input and what to do; and which errors mean full memory."""

import errno
import re


class PgraftError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(PgraftError, ValueError):
    """The input is wrong. The message is one line: what was given, what is allowed."""


class CheckpointError(PgraftError):
    """A saved file is missing, damaged or belongs to another run."""


class RewardError(PgraftError):
    """A reward raised, returned the wrong shape, or marked too many samples invalid."""


class StorageError(PgraftError, OSError):
    """The run folder cannot be written: permission, lock, or no space left."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class BackendError(PgraftError):
    """A backend was asked for by name and cannot run: no compiler, no Triton, no device for it."""


class StoppedError(PgraftError):
    """The run was asked to stop and can be resumed."""


class OutOfTimeError(PgraftError):
    """The budget ended within a round, which is dropped."""


class RankError(PgraftError):
    """Another rank of the run has failed, or is gone."""


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
