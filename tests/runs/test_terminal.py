"""What a person sees of a table."""

from pgraft_fast.report import Table
from pgraft_fast.runs.terminal import Terminal


def test_a_wide_table_loses_nothing(capsys):
    header = ["method", *(f"a long name {column}" for column in "abcdefghij")]
    rows = [[f"row {row}", *(f"{100 * row + column}.25 ± {column}.75" for column in range(10))] for row in range(3)]
    Terminal().table("Title", Table(header, rows, "A note."))
    shown = capsys.readouterr().err
    assert "…" not in shown and "A note." in shown
    for row in rows:
        for cell in row[1:]:
            assert all(part in shown for part in cell.split())
