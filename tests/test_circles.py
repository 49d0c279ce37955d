"""No file and no folder imports itself by way of others."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOMES = {
    "pgraft_fast": "pgraft_fast", "pgraft_fast_kernels": "kernels", "pgraft_fast_benchmarks": "benchmarks",
    "pgraft_fast_csrc": "csrc",
}  # fmt: skip
Graph = dict[str, set[str]]


def imported(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Of each import, in functions too, the names that it may mean, the likeliest first."""
    if isinstance(node, ast.Import):
        yield from ((alias.name,) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((f"{node.module}.{alias.name}", str(node.module)) for alias in node.names)
    seen_by_checkers_alone = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in node.orelse if seen_by_checkers_alone else ast.iter_child_nodes(node):
        yield from imported(child)


def files() -> Graph:
    """Our files by the names of their modules, and which of ours each imports."""
    code = {}
    for package, home in HOMES.items():
        for path in (ROOT / home).rglob("*.py"):
            name = ".".join((package, *path.relative_to(ROOT / home).with_suffix("").parts))
            code[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return {
        name: {next((candidate for candidate in names if candidate in code), name) for names in imported(tree)} - {name}
        for name, tree in code.items()
    }


def folders(graph: Graph) -> Graph:
    """The folders of these files, a file beside them being one of its own."""
    home = {name: ".".join(name.split(".")[: 1 if name.startswith("pgraft_fast_") else 2]) for name in graph}
    result: Graph = {}
    for name, used in graph.items():
        result.setdefault(home[name], set()).update({home[used_name] for used_name in used} - {home[name]})
    return result


def circle(graph: Graph) -> list[str]:
    """One circle, each of it importing the next; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        # Told from the imported one to the importing one.
        return error.args[1][::-1]
    return []


def test_no_circle_of_files():
    cycle = circle(files())
    assert not cycle, " -> ".join(cycle)


def test_no_circle_of_folders():
    cycle = circle(folders(files()))
    assert not cycle, " -> ".join(cycle)


def test_what_counts():
    code = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    from c import d"
    assert list(imported(ast.parse(code))) == [("b",), ("c.d", "c")]
    cycle = circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert cycle in (list("abca"), list("bcab"), list("cabc"))
