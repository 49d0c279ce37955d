"""What nobody expected: one line for the user, the rest in a log file."""

import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import pgraft_fast
from pgraft_fast.errors import is_out_of_memory
from pgraft_fast.files import cache_folder

_LONGEST = 300


def message_of(error: BaseException, arguments: Sequence[str]) -> str:
    """One line: what happened, and where the log is. Never raises."""
    words = " ".join(str(error).split())
    what = type(error).__name__ + (f": {words[:_LONGEST]}" if words else "")
    what = f"out of memory ({what}); ask for less at once" if is_out_of_memory(error) else f"unexpected {what}"
    try:
        return f"{what}; details: {_written(_log(error, arguments))}"
    except OSError as failed:
        return f"{what}; no folder for a log could be written ({failed.strerror}); set PGRAFT_FAST_CACHE"


def _log(error: BaseException, arguments: Sequence[str]) -> str:
    versions = f"pgraft-fast {pgraft_fast.__version__}, Python {platform.python_version()}, {platform.platform()}"
    torch = getattr(sys.modules.get("torch"), "__version__", "not loaded")
    trace = "".join(traceback.format_exception(error))
    return f"pgraft-fast {shlex.join(arguments)}\n{versions}, torch {torch}\nin {_here()}\n\n{trace}"


def _here() -> str:
    try:
        return str(Path.cwd())
    except OSError as error:
        return f"a folder that is gone ({error.strerror})"


def _written(text: str) -> Path:
    """Into the cache folder, or where that cannot be written into that of temporary files. Raises OSError."""
    data = text.encode(errors="backslashreplace")
    try:
        path = cache_folder() / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path
    except OSError:
        with tempfile.NamedTemporaryFile(prefix="pgraft_fast-", suffix=".log", delete=False) as file:
            file.write(data)
        return Path(file.name)
