"""Errors that a user can mend: one line that names the input and what to do."""


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
