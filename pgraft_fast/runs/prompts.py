"""What a run asks its pipeline for: prompts to train and to measure on, with arguments of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.prompt_files import PromptFile, with_held_out

PROMPT = "prompt"


@dataclass(frozen=True)
class RunPrompts:
    """train, held_out: names of the prompts, no two alike. prompts: of all, first those of train, as the pipeline
    gets them; columns: other arguments of its call, a value for each.
    """

    train: list[str]
    held_out: list[str]
    prompts: list[Any]
    columns: dict[str, list[Any]]

    @classmethod
    def of_files(cls, train: PromptFile, held_out: PromptFile) -> "RunPrompts":
        """Their columns are arguments of each prompt."""
        texts, taken = [*train.text, *held_out.text], dict[str, None]()
        for text in texts:
            name = text
            while name in taken:
                # The same words with other arguments.
                name += " "
            taken[name] = None
        names = [*taken]
        columns = {name: [*values, *held_out.columns[name]] for name, values in train.columns.items()}
        return cls(names[: len(train.text)], names[len(train.text) :], texts, columns)

    @classmethod
    def of(cls, prompts: Sequence[Any], held_out: Sequence[Any] | None, seed: int) -> "RunPrompts":
        """Prompts are texts, class numbers, or {"prompt": text, argument: value}. held_out: default a drawn tenth, or
        the only prompt itself. Raises InputError.
        """
        entries = _entries(prompts, "prompts")
        tested = {} if held_out is None else _entries(held_out, "held_out")
        if held_out is None and len(entries) < 2:
            # Measured on what is trained on, for want of others.
            train, test = list(entries), list(entries)
        else:
            parts = with_held_out(_file(entries), None if held_out is None else _file(tested), seed)
            train, test = (list(part.text) for part in parts)
        known = {**entries, **tested}
        rows = [known[name] for name in (*train, *test)]
        names = list(rows[0])
        odd = next((row for row in rows if list(row) != names), None)
        if odd is not None:
            raise InputError(f"prompts: {odd[PROMPT]!r} has {_names(odd)}, others {_names(rows[0])}; give all alike")
        columns = {name: [row[name] for row in rows] for name in names if name != PROMPT}
        return cls(train, test, [row[PROMPT] for row in rows], columns)


def _entries(prompts: Sequence[Any], what: str) -> dict[str, dict[str, Any]]:
    """By name, each once."""
    if isinstance(prompts, (str, Mapping)) or not len(prompts):
        raise InputError(f"{what}: give a list with at least one prompt")
    entries: dict[str, dict[str, Any]] = {}
    for prompt in prompts:
        entry = dict(prompt) if isinstance(prompt, Mapping) else {PROMPT: prompt}
        if not isinstance(entry.get(PROMPT), (str, int)):
            raise InputError(f"{what}: {prompt!r} is neither a text, nor a class number, nor a table with 'prompt'")
        value = entry.pop(PROMPT)
        name = str(value)
        while name in entries and entry:
            # The same words with other arguments.
            name += " "
        entries[name] = {PROMPT: value, **dict(sorted(entry.items()))}
    return entries


def _file(entries: Mapping[str, Any]) -> PromptFile:
    return PromptFile(tuple(entries), tuple("" for _ in entries))


def _names(entry: Mapping[str, Any]) -> str:
    return ", ".join(name for name in entry if name != PROMPT) or "no other arguments"
