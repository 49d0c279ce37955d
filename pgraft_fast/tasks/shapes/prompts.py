"""The prompts: a small grammar, its questions, and a fixed split into train and test combinations.

The six categories are those of GenEval (Ghosh et al. 2023, arXiv 2310.11513); the questions of a prompt, one fact
each, follow the idea of Davidsonian scene graphs (Cho et al. 2024, arXiv 2310.18235).
"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from pgraft_fast.errors import InputError
from pgraft_fast.tasks.shapes.geometry import COLOURS, SHAPES

CATEGORIES = ("single_object", "two_objects", "counting", "colours", "position", "attribute_binding")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {"a": 1, "two": 2, "three": 3, "four": 4}
_NAMED_SIZES = ("small", "large")
# Relations that keys tell the other way round.
_MIRROR = {"right of": "left of", "below": "above"}
_TEST_SHARE = 5


@dataclass(frozen=True)
class Thing:
    """`count` objects of a shape; a colour or size of None may be any."""

    shape: str
    colour: str | None = None
    size: str | None = None
    count: int = 1

    @property
    def words(self) -> str:
        """As in a prompt: "a large red circle", "three stars"."""
        number = next(word for word, n in NUMBERS.items() if n == self.count)
        return f"{number} {self.name}{'s' if self.count > 1 else ''}"

    @property
    def name(self) -> str:
        """Without the number: "large red circle"."""
        return " ".join(word for word in (self.size, self.colour, self.shape) if word)


@dataclass(frozen=True)
class Question:
    """One yes-or-no question about a picture.

    kind "has": is there a `thing`? "count": are there exactly `thing.count` of them? "relation": is a `thing` in this
    relation to an `other`? "total": are there exactly `total` objects, and nothing unreadable?
    """

    kind: str
    thing: Thing | None = None
    other: Thing | None = None
    relation: str | None = None
    total: int = 0

    @property
    def text(self) -> str:
        """In words."""
        if self.kind == "total":
            return f"is the number of objects in all exactly {self.total}?"
        assert self.thing is not None
        if self.kind == "count":
            return f"are there exactly {self.thing.words}?"
        if self.kind == "has":
            return f"is there a {self.thing.name}?"
        assert self.other is not None
        return f"is a {self.thing.name} {self.relation} a {self.other.name}?"


@dataclass(frozen=True)
class Prompt:
    """What a prompt says: one thing, or two with or without a relation between them."""

    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def text(self) -> str:
        """The prompt itself; `parse` reads it back."""
        if len(self.things) == 1:
            return self.things[0].words
        first, second = self.things
        return f"{first.words} {self.relation or 'and'} {second.words}"

    @property
    def category(self) -> str:
        """One of CATEGORIES."""
        first = self.things[0]
        if len(self.things) == 1:
            return "counting" if first.count > 1 else "colours" if first.colour else "single_object"
        if self.relation:
            return "position"
        return "attribute_binding" if any(thing.colour for thing in self.things) else "two_objects"

    @property
    def total(self) -> int:
        """Number of objects in the picture."""
        return sum(thing.count for thing in self.things)

    @property
    def key(self) -> str:
        """The same for two prompts that ask for the same picture."""
        names = [thing.words for thing in self.things]
        if self.relation in _MIRROR:
            return f"{names[1]} {_MIRROR[self.relation]} {names[0]}"
        return self.text if self.relation else " and ".join(sorted(names))

    @property
    def questions(self) -> tuple[Question, ...]:
        """From the shape alone to colour, size, number, relation and the number of all objects; no question twice."""
        return _questions(self)


@lru_cache(maxsize=16384)
def _questions(prompt: Prompt) -> tuple[Question, ...]:
    questions: dict[Question, None] = {}
    for thing in prompt.things:
        for part in (
            Thing(thing.shape),
            Thing(thing.shape, thing.colour),
            Thing(thing.shape, thing.colour, thing.size),
        ):
            questions[Question("has", part)] = None
        if thing.count > 1:
            questions[Question("count", thing)] = None
    if prompt.relation:
        questions[Question("relation", prompt.things[0], prompt.things[1], prompt.relation)] = None
    questions[Question("total", total=prompt.total)] = None
    return tuple(questions)


@lru_cache(maxsize=16384)
def parse(text: str) -> Prompt:
    """The prompt that a text of this grammar stands for. Raises InputError, which names the word."""
    words = text.lower().split()
    parts: list[list[str]] = []
    relation, start = None, 0
    for i, word in enumerate(words):
        if word in ("and", "left", "right", "above", "below"):
            name = f"{word} of" if word in ("left", "right") else word
            if parts or words[i : i + len(name.split())] != name.split():
                raise InputError(f"prompt {text!r}: one of 'and', {', '.join(map(repr, RELATIONS))} may stand once")
            parts.append(words[:i])
            relation, start = None if name == "and" else name, i + len(name.split())
    parts.append(words[start:])
    return Prompt(tuple(_thing(part, text) for part in parts), relation)


def _thing(words: list[str], text: str) -> Thing:
    if not words or words[0] not in NUMBERS:
        raise InputError(f"prompt {text!r}: each thing starts with one of {', '.join(NUMBERS)}")
    count, rest = NUMBERS[words[0]], words[1:]
    size = rest.pop(0) if rest and rest[0] in _NAMED_SIZES else None
    colour = rest.pop(0) if rest and rest[0] in COLOURS else None
    plural = "s" if count > 1 else ""
    if len(rest) != 1 or rest[0] not in {shape + plural for shape in SHAPES}:
        known = f"[{'|'.join(_NAMED_SIZES)}] [{'|'.join(COLOURS)}] {'|'.join(shape + plural for shape in SHAPES)}"
        raise InputError(f"prompt {text!r}: after {words[0]!r} come {known}, got {' '.join(words[1:])!r}")
    return Thing(rest[0].removesuffix(plural), colour, size, count)


def train_prompts(per_category: int | None = None) -> list[Prompt]:
    """The prompts a model may be trained on, category by category; the first `per_category` of each if given."""
    return _split(False, per_category)


def test_prompts(per_category: int | None = None) -> list[Prompt]:
    """The prompts kept for testing, about a fifth: no training prompt asks for the same picture."""
    return _split(True, per_category)


# pytest would take it for a test wherever it is imported.
test_prompts.__test__ = False  # type: ignore[attr-defined]


def _split(test: bool, per_category: int | None) -> list[Prompt]:
    if per_category is not None and per_category < 1:
        raise InputError(f"per_category={per_category}: ask for at least 1 prompt of each category")
    return [prompt for category in CATEGORIES for prompt in _by_category()[test, category][:per_category]]


@lru_cache(maxsize=1)
def _by_category() -> dict[tuple[bool, str], list[Prompt]]:
    prompts: dict[tuple[bool, str], list[Prompt]] = {(test, c): [] for test in (False, True) for c in CATEGORIES}
    # In the order of their hashes, so that the first few are a fair sample.
    for prompt in sorted(_all(), key=lambda p: _hash(f"order {p.text}")):
        prompts[_hash(prompt.key) % _TEST_SHARE == 0, prompt.category].append(prompt)
    return prompts


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"shapes {text}".encode()).digest()[:8])


def _all() -> Iterator[Prompt]:
    sizes = (None, *_NAMED_SIZES)
    # Two large objects do not fit everywhere, so that a size comes with its opposite.
    size_pairs = ((None, None), ("large", "small"), ("small", "large"))
    colour_pairs = list(itertools.permutations(COLOURS, 2))
    for shape, size, colour in itertools.product(SHAPES, sizes, (None, *COLOURS)):
        yield Prompt((Thing(shape, colour, size),))
    for shape, colour, count in itertools.product(SHAPES, (None, *COLOURS), (2, 3, 4)):
        yield Prompt((Thing(shape, colour, None, count),))
    for (a, b), (size_a, size_b) in itertools.product(itertools.permutations(SHAPES, 2), size_pairs):
        for relation in (None, *RELATIONS):
            yield Prompt((Thing(a, None, size_a), Thing(b, None, size_b)), relation)
    for a, b, (colour_a, colour_b), (size_a, size_b) in itertools.product(SHAPES, SHAPES, colour_pairs, size_pairs):
        for relation in (None, *RELATIONS):
            yield Prompt((Thing(a, colour_a, size_a), Thing(b, colour_b, size_b)), relation)
