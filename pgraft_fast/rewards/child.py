"""A process that is asked on stdin and answers on stdout, within a time-out, and never outlives us."""

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pgraft_fast.waiting import passive_environment

_CHUNK = 1 << 16
_POLITE_SECONDS = 1.0


class EndedError(Exception):
    """The process has closed its stdout."""


class Child:
    """command: its words. folder: where it runs. log: file that its stderr is added to, a temporary one where None.

    It has a process group of its own, so that Ctrl-C is ours alone and what it started ends with it; the end of this
    object or of the interpreter ends it. Its threads wait passively. Raises OSError where it cannot be started.
    """

    def __init__(self, command: Sequence[str], folder: Path | None = None, log: Path | None = None) -> None:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        self._log: IO[bytes] = tempfile.TemporaryFile() if log is None else open(log, "a+b")  # noqa: SIM115
        self._log_start = os.fstat(self._log.fileno()).st_size
        try:
            self._process = subprocess.Popen(
                list(command), cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
                start_new_session=True, env=passive_environment(),
            )  # fmt: skip
        except BaseException:
            self._log.close()
            raise
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._rest = b""
        self._finalizer = weakref.finalize(self, _end, self._process, self._log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def exchange(self, parts: Sequence[bytes | memoryview], seconds: float, limit: int) -> bytes:
        """Send the parts and return the next line, without its end.

        Raises TimeoutError after `seconds`, EndedError, and ValueError where a line is longer than `limit` bytes or
        comes before everything was sent.
        """
        deadline = time.monotonic() + seconds
        unsent = [memoryview(part).cast("B") for part in parts if len(part)]
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            if unsent:
                selector.register(self._in, selectors.EVENT_WRITE)
            while True:
                line, end, rest = self._rest.partition(b"\n")
                if end:
                    self._rest = rest
                    if unsent:
                        raise ValueError("a line before it had read the samples")
                    return line
                if len(self._rest) > limit:
                    raise ValueError(f"a line of more than {limit} bytes")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                for key, _ in selector.select(left):
                    if key.fd == self._out:
                        self._read()
                    elif not self._write(unsent):
                        selector.unregister(self._in)

    def interrupt(self) -> None:
        """End the process and all that it started, at once; may be called from another thread."""
        _kill(self._process)

    def close(self) -> None:
        """End the process, politely at first."""
        self._finalizer()

    def how_it_ended(self) -> str:
        """ "ended with exit code 3" or by which signal, after EndedError."""
        try:
            code = self._process.wait(_POLITE_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its stdout"
        if code >= 0:
            return f"ended with exit code {code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"was ended by signal {-code}{hint}"

    def last_words(self) -> str:
        """The last line on stderr, "" where there is none."""
        try:
            file = self._log.fileno()
            start = max(self._log_start, os.fstat(file).st_size - 4096)
            lines = os.pread(file, 4096, start).decode(errors="replace").splitlines()
        except (OSError, ValueError):
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _read(self) -> None:
        chunk = os.read(self._out, _CHUNK)
        if not chunk:
            raise EndedError
        self._rest += chunk

    def _write(self, unsent: list[memoryview]) -> bool:
        """Whether there is more to write. A process that reads no more is heard to the end."""
        try:
            written = os.write(self._in, unsent[0][:_CHUNK])
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        unsent[0] = unsent[0][written:]
        if not unsent[0]:
            del unsent[0]
        return bool(unsent)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_POLITE_SECONDS)
    _kill(process)
    process.wait()
    log.close()
