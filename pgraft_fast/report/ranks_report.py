"""The section of a report on the ranks of a run: who waited for whom."""

from collections.abc import Mapping
from typing import Any

from pgraft_fast.report.page import Section, Table


def ranks_sections(result: Mapping[str, Any]) -> list[Section]:
    """None for a run in one process. result: as in result.json."""
    waited = [entry["waited"] for entry in result["rounds"] if "waited" in entry]
    if not waited:
        return []
    most = max(len(shares) for shares in waited)
    cells = []
    for rank in range(most):
        own = [shares[rank] for shares in waited if rank < len(shares)]
        cells.append([f"rank {rank}", f"{sum(own) / len(own):.1%}", f"{max(own):.1%}", str(len(own))])
    text = [
        f"{result['spent']['device_hours']:.3g} device-hours on every rank together, idle ones included.",
        "A rank waits for the others after its own samples are scored, and in each optimiser step on a CPU; one that "
        "waits much less than the others is the slow one.",
    ]
    table = Table(["rank", "share of the rounds' time that it waited", "in the worst round", "rounds"], cells, "")
    return [Section("Ranks", text, table=table)]
