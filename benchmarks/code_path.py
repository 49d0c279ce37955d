"""A checkout as packages on a path, without installing it: for machines without a network, and for other commits.

Uses nothing but the standard library, since it runs before anything is known to be there.
"""

from pathlib import Path

_PACKAGES = {
    "pgraft_fast": "pgraft_fast",
    "pgraft_fast_benchmarks": "benchmarks",
    "pgraft_fast_csrc": "csrc",
    "pgraft_fast_kernels": "kernels",
}


def make(folder: Path, checkout: Path) -> Path:
    """Links in `folder`, under which the packages of the checkout are found; the folder, for PYTHONPATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, home in _PACKAGES.items():
        link = folder / name
        if link.is_symlink():
            link.unlink()
        link.symlink_to(checkout.resolve() / home)
    return folder
