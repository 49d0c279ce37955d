"""Amounts of memory, always in MB of 10^6 bytes."""

import sys

MB = 10**6
GB = 10**9


def megabytes(count: float) -> str:
    """ "12.3 MB" of a number of bytes; of less than a tenth "0.0021 MB"."""
    return f"{count / MB:,.1f} MB" if count >= 0.1 * MB else f"{count / MB:.4f} MB"


def peak_resident() -> int:
    """The most bytes that this process has had in memory."""
    # Not there on Windows.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
