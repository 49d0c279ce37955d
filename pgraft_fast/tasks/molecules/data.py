"""QM9: all of it from the package qm9pack, and its molecules of at most 7 heavy atoms, which are shipped.

QM9 (Ramakrishnan et al., Scientific Data 1, 140022, 2014; CC0): geometries by B3LYP/6-31G(2df,p).
"""

import csv
import importlib.util
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pgraft_fast.errors import InputError
from pgraft_fast.extras import need
from pgraft_fast.finetune import Prompts
from pgraft_fast.tasks.molecules.conditions import condition_of, formula_text, size_text
from pgraft_fast.tasks.molecules.elements import NO_ATOM, SYMBOLS, Molecules
from pgraft_fast.tasks.molecules.readers import npz_bytes, padded, read_npz
from pgraft_fast.tasks.sets import shares

SHIPPED = Path(__file__).parent / "data" / "qm9_7.npz"
MAX_HEAVY = 7
SIZE = 130_831
# EDM's split (arXiv 2203.17003): of a permutation with numpy's seed 0, in this order.
PARTS = {"train": 100_000, "validation": 17_748, "test": 13_083}

Split = Literal["all", "train", "validation", "test"]


@lru_cache(maxsize=1)
def shipped() -> Molecules:
    """The 3,921 molecules of QM9 with at most 7 heavy atoms, in QM9's order, to 0.001 angstrom. Raises InputError."""
    return read_npz(SHIPPED)


def qm9(split: Split = "all") -> Molecules:
    """QM9 without the 3,054 that its authors call inconsistent: 130,831, or one of EDM's parts of them.

    In QM9's order, a part in that of the permutation; with SMILES of the authors. The first call takes seconds.
    Raises InputError where qm9pack is not installed or its files are not as expected.
    """
    if split != "all" and split not in PARTS:
        raise InputError(f"split {split!r} is unknown; known: all, {', '.join(PARTS)}")
    molecules = _qm9()
    return molecules if split == "all" else molecules.rows(split_rows()[split])


def split_rows() -> dict[str, torch.Tensor]:
    """Numbers of the molecules in each of EDM's parts, int64."""
    order = torch.from_numpy(np.random.RandomState(0).permutation(SIZE).astype(np.int64))
    return dict(zip(PARTS, order.split(list(PARTS.values())), strict=True))


def small_molecules(molecules: Molecules, max_heavy: int = MAX_HEAVY) -> Molecules:
    """Those of at most so many atoms other than hydrogen, centred, in the same order."""
    heavy = (molecules.elements > SYMBOLS.index("H")).sum(dim=1)
    chosen = molecules.rows((heavy <= max_heavy).nonzero().flatten())
    n = int(chosen.count.max())
    elements, positions = chosen.elements[:, :n], chosen.positions[:, :n]
    atom = (elements != NO_ATOM)[:, :, None]
    centre = positions.to(torch.float64).sum(dim=1, keepdim=True) / chosen.count[:, None, None]
    return Molecules(elements, (positions - centre).where(atom, 0.0).to(torch.float32), chosen.smiles)


def subset_bytes(max_heavy: int = MAX_HEAVY) -> bytes:
    """The recipe of the shipped file, from qm9pack. Raises InputError."""
    return npz_bytes(small_molecules(qm9(), max_heavy))


def size_prompts(molecules: Molecules, n: int = 100, n_max: int | None = None) -> Prompts:
    """n prompts whose numbers of atoms are distributed as those of a set, by the largest remainder.

    text: "19 atoms", ascending. condition: (n, n_max) int64, see `conditions`; n_max: the set's most, where it is None.
    """
    whole = shares(torch.bincount(molecules.count), n)
    sizes = torch.arange(len(whole)).repeat_interleave(whole)
    return _prompts([size_text(size) for size in sizes.tolist()], molecules, n_max)


def formula_prompts(molecules: Molecules, n: int = 100, n_max: int | None = None) -> Prompts:
    """n prompts whose formulas are distributed as those of a set, by the largest remainder; the most frequent first.

    text: "C4H8O2", in Hill's order. condition: (n, n_max) int64, see `conditions`; n_max: the set's most, where None.
    """
    formulas = Counter(formula_text(row) for row in molecules.elements.tolist()).most_common()
    whole = shares(torch.tensor([number for _, number in formulas]), n).tolist()
    texts = [text for (text, _), copies in zip(formulas, whole, strict=True) for _ in range(copies)]
    return _prompts(texts, molecules, n_max)


def _prompts(texts: list[str], molecules: Molecules, n_max: int | None) -> Prompts:
    return Prompts(texts, condition_of(texts, n_max or int(molecules.count.max())))


@lru_cache(maxsize=1)
def _qm9() -> Molecules:
    need("QM9", "qm9pack", extra="molecules")
    # Its own reader needs pandas, and pkg_resources of an older setuptools.
    spec = importlib.util.find_spec("qm9pack")
    folder = Path(next(iter((spec and spec.submodule_search_locations) or [""]))) / "data"
    count, symbols, points, smiles = [], [], [], []
    for path in (folder / f"qm9_part{part}.csv" for part in (1, 2, 3)):
        try:
            for row in _rows(path):
                count.append(int(row["N_atoms"]))
                symbols.append(row["Elements"].strip("[]").replace("'", ""))
                points.append(_numbers(row["XYZ_Ang"]))
                if not 3 * count[-1] == len(points[-1]) == 3 * len(symbols[-1].split(",")):
                    raise ValueError(f"N_atoms is {count[-1]}")
                smiles.append(row["SMILES"])
        except OSError as error:
            raise InputError(f"{path}: QM9 cannot be read ({error.strerror}); install qm9pack again") from error
        except (ValueError, KeyError, AttributeError, TypeError, csv.Error) as error:
            raise InputError(f"{path}, molecule {len(smiles) + 1}: not as qm9pack 1.0.3 has it ({error})") from error
    elements = _indices(",".join(symbols).split(","))
    positions = torch.from_numpy(np.concatenate(points)).view(-1, 3)
    n_atoms = torch.tensor(count)
    if len(count) != SIZE:
        raise InputError(f"{folder}: {len(count)} molecules; QM9 has {SIZE}; install qm9pack again")
    return padded(n_atoms, elements, positions, smiles)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _numbers(text: str) -> np.ndarray:
    return np.array(text.replace("[", "").replace("]", "").split(","), dtype=np.float32)


def _indices(symbols: list[str]) -> torch.Tensor:
    index = {symbol: number for number, symbol in enumerate(SYMBOLS)}
    try:
        return torch.tensor([index[symbol] for symbol in symbols])
    except KeyError as error:
        raise InputError(f"qm9pack: element {error.args[0]!r} is unknown; known: {', '.join(SYMBOLS)}") from error
