"""A JSON file of lists, item by item: what is held is a chunk of text and one item, however long the file is."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

# Characters. An item that is longer has no end.
CHUNK, LONGEST = 2**20, 2**24
_SPACE = re.compile(r"[ \t\r\n]*")


def entries(file: TextIO, chunk: int = CHUNK, longest: int = LONGEST) -> Iterator[tuple[str, int, Any]]:
    """Key, number from 1, and value of each item of the lists that a JSON object has; its other values are left out.

    Raises ValueError: which entry is damaged and how.
    """
    window = _Window(file, chunk, longest)
    window.take("{", "the file")
    if window.peek() == "}":
        window.take("}", "the file")
    else:
        more = True
        while more:
            key = window.value("a key")
            if not isinstance(key, str):
                raise ValueError(f"{_short(key)} is no key")
            window.take(":", _short(key))
            if window.peek() == "[":
                yield from _items(window, key)
            else:
                window.value(key)
            more = window.take(",}", f"after {key}") == ","
    if window.peek():
        raise ValueError("text after the end of the JSON")


def _items(window: "_Window", key: str) -> Iterator[tuple[str, int, Any]]:
    window.take("[", key)
    number = 0
    if window.peek() == "]":
        window.take("]", key)
        return
    more = True
    while more:
        number += 1
        yield key, number, window.value(f"{key}, entry {number}")
        more = window.take(",]", f"{key}, after entry {number}") == ","


class _Window:
    """What was read of a file and not yet used."""

    def __init__(self, file: TextIO, chunk: int, longest: int) -> None:
        self._file, self._chunk, self._longest = file, chunk, longest
        self._text, self._place, self._ended = "", 0, False
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no space, not used; none at the end."""
        while True:
            space = _SPACE.match(self._text, self._place)
            self._place = space.end() if space else self._place
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._read():
                return ""

    def take(self, allowed: str, where: str) -> str:
        """The next character, one of those allowed. Raises ValueError."""
        character = self.peek()
        if not character:
            raise ValueError(f"{where}: the file ends, cut short")
        if character not in allowed:
            raise ValueError(f"{where}: damaged JSON, {character!r} in place of {' or '.join(allowed)}")
        self._place += 1
        return character

    def value(self, where: str) -> Any:
        """The next value. Raises ValueError."""
        if not self.peek():
            raise ValueError(f"{where}: the file ends, cut short")
        while True:
            reason = ""
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
                # A number may go on in what was not read yet, also where it ends in "1." or "1e".
                if self._ended or self._text[end : end + 1] not in ("", ".", "e", "E"):
                    self._place = end
                    return value
            except json.JSONDecodeError as error:
                reason = error.msg
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: damaged JSON ({_reason(error)})") from error
            if len(self._text) - self._place > self._longest:
                raise ValueError(f"{where}: damaged JSON ({reason or 'too long'}), or over {self._longest} characters")
            if not self._read() and reason:
                raise ValueError(f"{where}: damaged JSON, or the file is cut short ({reason})")

    def _read(self) -> bool:
        """Whether there was more to read."""
        part = self._file.read(self._chunk)
        self._ended = not part
        self._text, self._place = self._text[self._place :] + part, 0
        return bool(part)


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
