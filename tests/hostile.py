"""Files that somebody made to do harm: code in pickles, small ones that unpack to much, names that lead elsewhere."""

import hashlib
import io
import json
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch

# What terminals obey, and what browsers run.
TERMINAL = (
    "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\", "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x9b31m", "a\rb",
    "a\x08b", "\u202egnp.exe", "\u2066a\u2069", "c\u2028d", "a\x00b", "\U000e0041\U000e0042",
)  # fmt: skip
MARKUP = (
    "<script>document.title = 'run'</script>", "<img src=x onerror=alert(1)>", '" onmouseover="alert(1)',
    "</td><svg onload=alert(1)>", "<a href='javascript:alert(1)'>x</a>", "{{ 7 * 7 }}", "{% raw %}", "<!--", "]]>",
    "&lt;script&gt;", "$\\frac{1}{$", "[link=evil]x[/link]", "[/]",
)  # fmt: skip
# Where a canary dies; set by `aim`.
_TARGET = "HOSTILE_CANARY"


def aim(canary: Path) -> None:
    """Code of these files, if it runs, writes this one."""
    os.environ[_TARGET] = str(canary)


def ran() -> bool:
    """Whether any did."""
    return Path(os.environ[_TARGET]).exists()


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> object:
        return exec, (f"import os; open(os.environ[{_TARGET!r}], 'w').close()",)


def fires(data: bytes) -> bool:
    """Whether such a pickle does run its code where somebody unpickles it; the canary is gone again."""
    pickle.loads(data)
    happened = ran()
    Path(os.environ[_TARGET]).unlink(missing_ok=True)
    return happened


def _torch(legacy: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2), "layers.0.weight": Code()}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _packed_torch() -> bytes:
    """As torch.save writes it, but that zeros are compressed to a thousandth."""
    buffer, packed = io.BytesIO(), io.BytesIO()
    torch.save({"layers.0.weight": torch.zeros(1, 1 << 22)}, buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
        for entry in archive.infolist():
            other.writestr(entry.filename, archive.read(entry))
    return packed.getvalue()


def _npy(header: str, rest: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin1") + rest


def _npz(parts: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data, method)
    return buffer.getvalue()


_ARRAYS = ("num_atoms", "charges", "positions", "counts", "labels", "boxes")


def _objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Code(), Code()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@cache
def _bomb() -> bytes:
    """A gigabyte of zeros in a megabyte, under each name the same bytes."""
    size = 1 << 30
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("counts.npy", "w", force_zip64=True) as entry:
            entry.write(_npy(header))
            for _ in range(64):
                entry.write(bytes(size // 64))
        for name in set(_ARRAYS) - {"counts"}:
            archive.writestr(f"{name}.npy", _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (0,), }\n"))
    return buffer.getvalue()


def _safetensors(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(offsets: tuple[int, int] = (0, 16), dtype: str = "F32", shape: tuple[int, ...] = (4,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def _png(width: int, height: int, more: bytes = b"") -> bytes:
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + part(b"IDAT", zlib.compress(bytes(64))) + part(b"IEND", b"")


def _deep(text: str, closing: str = "") -> bytes:
    return (text * 200_000 + closing * 200_000).encode()


def _each(header: str) -> Callable[[], bytes]:
    return lambda: _npz({f"{name}.npy": _npy(header) for name in _ARRAYS})


def _text(text: str) -> Callable[[], bytes]:
    return text.encode


_ODD = {
    "prompt": list(TERMINAL), "total": -1, "shard": 0, "sha256": {"../../secret": "0", "/etc/passwd": "0"},
    "settings": [], "history": {},
}  # fmt: skip
_CLIMBS = {"pgraft_fast": '{"extra": {"run": "../.."}}', "file": "../../x"}
_DEEP = {"pgraft_fast": "[" * 200_000, "lora_adapter_metadata": "[" * 200_000}
MAKERS: dict[str, Callable[[], bytes]] = {
    **{f"pickle {number}": lambda number=number: pickle.dumps(Code(), number) for number in (0, 2, 4, 5)},
    "torch zip": lambda: _torch(False),
    "torch legacy": lambda: _torch(True),
    "torch zip, packed": _packed_torch,
    "npy of objects": _objects,
    "npz of objects": lambda: _npz({f"{name}.npy": _objects() for name in _ARRAYS}),
    "npz bomb": _bomb,
    "npz of a lie": _each("{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,), }\n"),
    "npz of code": _each("__import__('os').abort()\n"),
    "npz of a long header": _each("(" * 60_000),
    "npz that climbs": lambda: _npz({f"../../{name}.npy": _objects() for name in _ARRAYS}),
    "safetensors of any length": lambda: _safetensors({}, length=2**63),
    "safetensors of a terabyte": lambda: _safetensors({"w": _tensor((0, 2**40), shape=(2**38,))}),
    "safetensors that overlaps": lambda: _safetensors({"a": _tensor(), "b": _tensor()}),
    "safetensors of another dtype": lambda: _safetensors({"w": _tensor(dtype="PICKLE")}),
    "safetensors of a negative shape": lambda: _safetensors({"w": _tensor(shape=(-4,))}),
    "safetensors of a wrapped shape": lambda: _safetensors({"w": _tensor(shape=(2**62, 2**62, 16))}),
    "safetensors that climbs": lambda: _safetensors({"../../w": _tensor(), "__metadata__": _CLIMBS}),
    "safetensors of a terminal": lambda: _safetensors(
        {TERMINAL[0] + MARKUP[0]: _tensor(), "__metadata__": {TERMINAL[1]: MARKUP[1]}}
    ),
    "safetensors of deep metadata": lambda: _safetensors({"w": _tensor(), "__metadata__": _DEEP}),
    "safetensors of a deep header": lambda: _safetensors(_deep("[")),
    "safetensors of no names": lambda: _safetensors([1, 2]),
    "json, deep lists": lambda: _deep("[", "]"),
    "json, deep objects": lambda: _deep('{"a":'),
    "json, a long number": _text("9" * 100_000),
    "json, odd values": _text(json.dumps(_ODD)),
    "json, names of a terminal": _text(json.dumps(dict.fromkeys(TERMINAL, MARKUP[0]))),
    "json, half a pair": _text('["\\ud800", {"prompt": "\\udfff"}]'),
    "json, no object": _text("null"),
    "texts of a terminal": _text("\n".join((*TERMINAL, *MARKUP))),
    "texts of zeros": _text("\0" * (1 << 20)),
    "a table of a terminal": _text(f"prompt,category\n{TERMINAL[0]},x,{TERMINAL[1]}\n"),
    "toml of a terminal": _text(f"{json.dumps(TERMINAL[0])} = 1\n[model]\n{json.dumps(MARKUP[0])} = 2\n"),
    "python": _text(f"import os\nopen(os.environ[{_TARGET!r}], 'w').close()\n"),
    "png of 4 gigapixels": lambda: _png(65_535, 65_535),
    "png of nothing": lambda: _png(0, 0),
    "png of a text bomb": lambda: _png(8, 8, struct.pack(">I", 0) + b"zTXt" + b"\xff" * 4),
}


def manifest(folder: Path) -> None:
    """Write one that is right for what lies in the folder: hashes prove nothing of who wrote a file."""
    files = (path for path in folder.iterdir() if path.name != "manifest.json")
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    text = json.dumps({"sha256": hashes}, indent=2, sort_keys=True) + "\n"
    (folder / "manifest.json").write_text(text)


def resident_peak() -> int:
    """Bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
