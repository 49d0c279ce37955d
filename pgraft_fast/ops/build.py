"""What the libraries built on first use have in common: the cache, one build at a time, the digest, the messages.

Libraries are kept in `files.cache_folder`. `user` is the part that needs the library: every message begins with it.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from pgraft_fast.errors import BackendError


def source_folder(user: str) -> Path:
    """The folder of the sources: csrc of a checkout, pgraft_fast_csrc of an installation."""
    spec = importlib.util.find_spec("pgraft_fast_csrc")
    if spec is None or not spec.submodule_search_locations:
        raise BackendError(f"{user}: the package pgraft_fast_csrc is missing; install pgraft-fast again")
    return Path(next(iter(spec.submodule_search_locations)))


def is_whole(library: Path) -> bool:
    """Whether a library is there as it was built: loading a damaged one could end the process."""
    try:
        return _digest_file(library).read_text() == hashlib.sha256(library.read_bytes()).hexdigest()
    except OSError:
        return False


def build_folder(target: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder to build `target` in, beside it and gone afterwards."""
    return tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-")


def put(library: Path, target: Path) -> None:
    """Move a finished library to `target`, its digest beside it: whole or not at all."""
    digest = library.with_name("digest")
    digest.write_text(hashlib.sha256(library.read_bytes()).hexdigest())
    os.replace(library, target)
    os.replace(digest, _digest_file(target))


def build_once(user: str, path: Path, note: str, build: Callable[[Path], None]) -> None:
    """Call build(path) unless the library is there: one process builds, the others wait for it."""
    if is_whole(path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One lock for every library: whoever holds it may clear the folders of builds that were killed.
        with FileLock(path.with_name("build.lock")):
            if not is_whole(path):
                for left in path.parent.glob(".build-*"):
                    shutil.rmtree(left, ignore_errors=True)
                if sys.stderr.isatty():
                    print(f"pgraft_fast: {note}", file=sys.stderr)
                build(path)
    except OSError as error:
        raise BackendError(f"{user} cannot be built in {path.parent}: {error}; set PGRAFT_FAST_CACHE") from error


def run(user: str, command: list[str]) -> None:
    """Run a compiler. Raises BackendError with its first error."""
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        errors = [line for line in process.stderr.splitlines() if "error" in line] or process.stderr.splitlines()
        message = first_line("\n".join(errors))
        raise BackendError(f"{user}: {command[0]} failed with status {process.returncode}: {message}")


def first_line(text: str) -> str:
    return next(iter(text.splitlines()), "no message")[:200]


def _digest_file(library: Path) -> Path:
    return library.with_suffix(".sha256")
