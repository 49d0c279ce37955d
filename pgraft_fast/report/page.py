"""One self-contained HTML page from text, tables and figures; the figures also as files beside it."""

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader

from pgraft_fast.errors import printable
from pgraft_fast.files import storage_error, write_file


@dataclass(frozen=True)
class Picture:
    """name: of the PNG file. alt: what it shows, for those who cannot see it. caption: one sentence."""

    name: str
    png: bytes
    alt: str
    caption: str

    @property
    def data_uri(self) -> str:
        """The picture inside the page."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Sound:
    """name: of the WAV file. caption: one sentence."""

    name: str
    wav: bytes
    caption: str

    @property
    def data_uri(self) -> str:
        """The sound inside the page."""
        return "data:audio/wav;base64," + base64.b64encode(self.wav).decode()


@dataclass(frozen=True)
class Table:
    """First column left, the others right."""

    header: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with sentences, at most one table and any number of pictures and sounds."""

    title: str
    text: list[str] = field(default_factory=list)
    table: Table | None = None
    pictures: list[Picture] = field(default_factory=list)
    sounds: list[Sound] = field(default_factory=list)


def number_text(value: float | None, digits: int = 4) -> str:
    """A number of a report; "-" where it is not known."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def interval(ends: Sequence[float | None]) -> str:
    """ "0.1000 to 0.2000"; "-" of a single value."""
    low, high = (number_text(end) for end in ends)
    return "-" if "-" in (low, high) else f"{low} to {high}"


def _file_name(name: str) -> str:
    """Without what a system, or a folder, would understand."""
    return re.sub(r"[^\w.+-]+", "-", name).lstrip(".")


def write_page(folder: Path, title: str, lead: str, sections: list[Section]) -> Path:
    """Write folder/index.html, one PNG a picture and one WAV a sound. Raises StorageError."""
    environment = Environment(
        loader=PackageLoader("pgraft_fast.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) else value,
    )  # fmt: skip
    html = environment.get_template("page.html.j2").render(title=title, lead=lead, sections=sections)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    for section in sections:
        for picture in section.pictures:
            write_file(folder / f"{_file_name(picture.name)}.png", picture.png)
        for sound in section.sounds:
            write_file(folder / f"{_file_name(sound.name)}.wav", sound.wav)
    path = folder / "index.html"
    write_file(path, html.encode())
    return path
