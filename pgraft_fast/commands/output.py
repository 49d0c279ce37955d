"""Where the result of a command goes."""

import sys
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from pgraft_fast.commands.options import check_writable
from pgraft_fast.errors import StorageError
from pgraft_fast.files import to_json, write_file
from pgraft_fast.ranks.environment import speaks

Json = Annotated[str | None, arg(metavar="FILE", help='write the result as JSON to FILE; "-" is stdout')]


def check_json(path: str | None) -> None:
    """Before any work: the result must have a place to go. Raises InputError."""
    if path != "-":
        check_writable("--json", path)


def emit(result: dict[str, Any], path: str | None) -> None:
    """Write the result as JSON, once for all ranks. Raises StorageError."""
    if not speaks():
        return
    if path == "-":
        if sys.stdout is None:
            raise StorageError("--json -: stdout is closed")
        try:
            sys.stdout.write(to_json(result).decode())
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StorageError(f"--json -: stdout cannot be written ({error.strerror})") from error
    elif path is not None:
        write_file(Path(path), to_json(result))
