"""Layouts to train on, and layouts that are held out: the shipped pages, or a user's PubLayNet or RICO."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.layouts.archive import read_npz
from pgraft_fast.tasks.layouts.elements import MAX_ELEMENTS, PUBLAYNET, Layouts
from pgraft_fast.tasks.layouts.pages import shipped
from pgraft_fast.tasks.layouts.readers import (
    PUBLAYNET_PARTS,
    RICO_PARTS,
    Reading,
    read_publaynet,
    read_rico,
    split_rows,
)

# Percent of the shipped pages, and of those of an npz.
SPLIT = {"train": 90, "held_out": 10}


def parts_of(layouts: Layouts, split: Mapping[str, int] = SPLIT) -> tuple[Layouts, Layouts]:
    """What is trained on, the first part of the split, and what is held out, the last."""
    rows = list(split_rows(len(layouts), split).values())
    return layouts.rows(rows[0]), layouts.rows(rows[-1])


def load_parts(
    data: str | None, n_max: int = MAX_ELEMENTS, log: Callable[[str], None] = lambda text: None
) -> tuple[Layouts, Layouts]:
    """As `parts_of`, of the shipped pages where data is None; else of a .json of PubLayNet, an .npz with PubLayNet's
    labels (see `archive`), or a folder of RICO's annotations. Pages of more than n_max elements are left out; log is
    told of what is. Raises InputError.
    """
    if data is None:
        return parts_of(_of_at_most(n_max, shipped()))
    path, split = Path(data), SPLIT
    if path.suffix == ".npz":
        layouts = _of_at_most(n_max, read_npz(path, PUBLAYNET))
    elif path.suffix == ".json":
        layouts, split = _layouts_of(read_publaynet(path, n_max), path, log), PUBLAYNET_PARTS
    elif path.is_dir():
        layouts, split = _layouts_of(read_rico(path, n_max), path, log), RICO_PARTS
    else:
        raise InputError(f"{path}: no data of layouts; give a .json of PubLayNet, a folder of RICO, or an .npz")
    train, held_out = parts_of(layouts, split)
    if not len(train) or not len(held_out):
        raise InputError(f"{path}: {len(layouts)} layouts are too few to hold some out")
    return train, held_out


def _of_at_most(n_max: int, layouts: Layouts) -> Layouts:
    return layouts.rows((layouts.count <= n_max).nonzero().flatten())


def _layouts_of(reading: Reading, path: Path, log: Callable[[str], None]) -> Layouts:
    for line in reading.dropped.lines:
        log(f"{path}: left out {line}")
    return reading.layouts
