"""Arrays of a data set as one npz: the same bytes each time, and every damage one line."""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

# Bytes that any file may hold, and how many times its own size a larger one: arrays of data have 2 to 20.
_FREE, _RATIO = 1 << 28, 100


def array_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A compressed npz with the arrays in their order; no date, nor the system that wrote it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            part = io.BytesIO()
            np.lib.format.write_array(part, array, version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")
            # Unix, wherever it is written.
            entry.create_system = 3
            archive.writestr(entry, part.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def _check_size(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(_FREE, _RATIO * len(data)):
        raise ValueError(f"{unpacked} bytes packed into {len(data)}")


def arrays_of(data: bytes, names: Sequence[str]) -> list[np.ndarray]:
    """The arrays of these names. Raises ValueError where the file has them not, is damaged, or so packed that a small
    file would fill the memory.
    """
    try:
        _check_size(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                raise KeyError(f"no array {', '.join(missing)}")
            return [archive[name] for name in names]
    except (
        AttributeError, EOFError, KeyError, MemoryError, NotImplementedError, OSError, RuntimeError, SyntaxError,
        TypeError, ValueError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        has_reason = isinstance(error, KeyError) or "packed" in str(error)
        reason = error.args[0] if has_reason else type(error).__name__
        raise ValueError(reason) from error
