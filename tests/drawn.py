"""Drawn configs and option lists, and what must hold of every end of a command."""

import json
import math
import random
from functools import cache
from typing import Any

from hostile import MARKUP, TERMINAL
from pydantic import BaseModel, TypeAdapter

from pgraft_fast.cli import main

ODD_TEXT = (
    "",
    " ",
    "0",
    "-1",
    "none",
    "nan",
    "ü",
    "a b",
    "a\nb",
    "../..",
    "x" * 300,
    "\\",
    "'\"",
    "%s{}",
    "--json",
    "\0",
    *TERMINAL,
    *MARKUP,
)
ODD_NUMBERS = (
    0, 1, 2, -1, 10**6, 2**31, 2**63, -(2**63), 10**30, 0.0, 0.5, 1.0, -0.5, 1e-30, 1e30, 1e300, 5e-324, math.inf,
    -math.inf, math.nan,
)  # fmt: skip


def odd(rng: random.Random, depth: int = 0) -> Any:
    """Any value that TOML has."""
    kinds = ["number", "text", "flag", "list", "table"] if depth < 2 else ["number", "text", "flag"]
    match rng.choice(kinds):
        case "number":
            return rng.choice(ODD_NUMBERS)
        case "text":
            return rng.choice(ODD_TEXT)
        case "flag":
            return rng.random() < 0.5
        case "list":
            return [odd(rng, depth + 1) for _ in range(rng.randrange(3))]
        case _:
            return {rng.choice(("a", "kind", "steps", "")): odd(rng, depth + 1) for _ in range(rng.randrange(3))}


def near(rng: random.Random, schema: dict[str, Any], defs: dict[str, Any], wild: bool = True) -> Any:
    """A value at a bound of a JSON schema, or of its choices; `wild`: or just beyond, and often enough anything."""
    if rng.random() < (0.2 if wild else 0.01):
        return odd(rng)
    while "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    options = schema.get("anyOf", schema.get("oneOf"))
    if options:
        chosen = rng.choice([option for option in options if option.get("type") != "null"])
        return near(rng, chosen, defs, wild)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice([*schema["enum"], *(["nothing"] if wild else [])])
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    high = schema.get("maximum", schema.get("exclusiveMaximum", 1))
    match schema.get("type"):
        case "integer":
            beyond = (low - 1, high + 1) if wild else ()
            return rng.choice((low, low + 1, high, high - 1, (low + high) // 2, *beyond))
        case "number":
            inside = (math.nextafter(low, math.inf), math.nextafter(high, -math.inf), low + 0.5 * (high - low))
            beyond = (low, high, math.nextafter(low, -math.inf), math.nextafter(high, math.inf)) if wild else ()
            return float(rng.choice((*inside, *beyond)))
        case "boolean":
            return rng.random() < 0.5
        case "array":
            count = rng.randrange(4) if wild else rng.randint(max(1, schema.get("minItems", 1)), 4)
            return [near(rng, schema.get("items", {}), defs, wild) for _ in range(count)]
        case "object":
            return table(rng, schema, defs, wild)
    return rng.choice(("sd", "digits", "flow", "run", *(ODD_TEXT if wild else ())))


def table(rng: random.Random, schema: dict[str, Any], defs: dict[str, Any], wild: bool = True) -> Any:
    """Some keys of a table, now and then one that it has not."""
    if rng.random() < (0.05 if wild else 0.01):
        return odd(rng)
    keys = list(schema.get("properties", {}))
    share = 0.3 if wild else 0.1
    chosen = [key for key in keys if key in schema.get("required", ()) or rng.random() < share]
    values = {
        key: near(rng, schema["properties"][key], defs, wild) for key in chosen if not wild or rng.random() < 0.97
    }
    if rng.random() < (0.1 if wild else 0.01):
        values[rng.choice(("stepz", "rung", "", "a.b", *TERMINAL))] = odd(rng)
    return values


@cache
def _json_schema(schema: type[BaseModel]) -> dict[str, Any]:
    return TypeAdapter(schema).json_schema()


def config(rng: random.Random, schema: type[BaseModel]) -> dict[str, Any]:
    """Values for a config of this schema: every other one mostly in place, the others often not."""
    json_schema = _json_schema(schema)
    values = table(rng, json_schema, json_schema.get("$defs", {}), wild=rng.random() < 0.5)
    return values if isinstance(values, dict) else {"run": values}


def to_toml(values: dict[str, Any]) -> str:
    """TOML text."""
    return "".join(f"{_quoted(key)} = {_value(value)}\n" for key, value in values.items())


def _quoted(text: str) -> str:
    # JSON would write half of a character, which TOML has no word for.
    return json.dumps(text, ensure_ascii=False)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _quoted(value)
        case float():
            return repr(value) if math.isfinite(value) else str(value)
        case list():
            return f"[{', '.join(map(_value, value))}]"
        case dict():
            return f"{{{', '.join(f'{_quoted(key)} = {_value(item)}' for key, item in value.items())}}}"
    return str(value)


def end_of(arguments: list[str], capsys: Any) -> int:
    """The status of a command: 0, or 2 with one line, or tyro's usage; never a traceback or a surprise."""
    try:
        status, usage = main(arguments), False
    except SystemExit as error:
        status, usage = error.code, True
    messages = capsys.readouterr().err
    assert status in (0, 2) and "Traceback" not in messages, (arguments, messages[-2000:])
    if status == 2 and not usage:
        ours = [line for line in messages.splitlines() if line.startswith("pgraft-fast: ")]
        assert len(ours) == 1 and messages.splitlines()[-1] == ours[0], (arguments, messages[-2000:])
        assert len(ours[0]) < 2000, arguments
    return status
