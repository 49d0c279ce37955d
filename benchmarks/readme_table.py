"""Write the README's demo table from benchmarks/results/demo.json, or with --check say whether they agree.

The file is what `pgraft-fast demo --json benchmarks/results/demo.json` wrote on the machine that it names.
"""

import json
import sys
from pathlib import Path

from pgraft_fast.commands.demo import demo_table, summarise

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "demo.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- demo table: make readme -->\n", "<!-- end of demo table -->\n"


def markdown() -> str:
    """The table."""
    table = demo_table(summarise(json.loads(RESULT.read_text())["rows"]), None)
    lines = [table.header, ["---"] + ["---:"] * (len(table.header) - 1), *table.rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def updated(text: str) -> str:
    """The README with the table in its place."""
    head, rest = text.split(BEGIN)
    return head + BEGIN + markdown() + END + rest.split(END)[1]


def main() -> int:
    """Exit status 1 where --check finds a difference."""
    text = README.read_text()
    if "--check" in sys.argv:
        return int(updated(text) != text)
    README.write_text(updated(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
