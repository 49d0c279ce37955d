"""JSON that is read item by item."""

import io
import json
import tracemalloc

import pytest

from pgraft_fast.tasks.layouts.json_entries import entries

WHOLE = {
    "info": {"year": 2019, "text": 'a "quoted" [bracket], {brace}'},
    "images": [{"id": 1, "name": "ä\n\\"}, {"id": 2}],
    "empty": [],
    "numbers": [1, 23.5, -4e10, "x", None, True, [], {"a": [1, [2]]}],
    "last": 7,
}


def read(text, **sizes):
    return list(entries(io.StringIO(text), **sizes))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 10**6])
@pytest.mark.parametrize("indent", [None, 2])
def test_items_at_every_size_of_chunk(chunk, indent):
    expected = [
        (key, number, item)
        for key, value in WHOLE.items()
        if isinstance(value, list)
        for number, item in enumerate(value, 1)
    ]
    assert read(json.dumps(WHOLE, indent=indent), chunk=chunk) == expected
    assert read(f" {json.dumps(WHOLE, ensure_ascii=False)}\r\n\t", chunk=chunk) == expected


def test_objects_with_nothing_to_give():
    assert read("{}") == read('{"a": 1}') == read(' { "a" : [ ] } ') == []


@pytest.mark.parametrize("chunk", [5, 10**6])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: the file ends, cut short"),
        ("[1]", "the file: damaged JSON, '[' in place of {"),
        ('{"a": [1, 2', "a, entry 2: "),
        ('{"a": [1, 2 ', "a, after entry 2: the file ends, cut short"),
        ('{"a": [1, {"b": ', "a, entry 2: damaged JSON, or the file is cut short"),
        ('{"a": [1, {"b": "te', "a, entry 2: damaged JSON, or the file is cut short (Unterminated string"),
        ('{"a": [1, {"b" 2}]}', "a, entry 2: damaged JSON, or the file is cut short (Expecting ':'"),
        ('{"a": [1 2]}', "a, after entry 1: damaged JSON, '2' in place of , or ]"),
        ('{"a": [1,]}', "a, entry 2: damaged JSON"),
        ('{"a": [1]', "after a: the file ends, cut short"),
        ('{"a": [1]} x', "text after the end of the JSON"),
        ('{"a": [1], }', "a key: damaged JSON"),
        ("{1: [1]}", "1 is no key"),
        ('{"a"', "'a': the file ends, cut short"),
        ('{"a": [' + "[" * 200_000, "a, entry 1: damaged JSON (nested too deeply)"),
        ('{"a": [' + "1" * 5000 + "]}", "a, entry 1: damaged JSON (a number of too many digits)"),
    ],
)
def test_json_that_is_damaged(text, message, chunk):
    if message == "a, entry 2: ":
        # A number at the end of a file may be whole.
        message = "a, after entry 2: the file ends, cut short"
    chunk = max(chunk, len(text) // 4)
    with pytest.raises(ValueError) as error:
        read(text, chunk=chunk)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


class Endless(io.StringIO):
    """A file that repeats a text, and counts what was read of it."""

    def __init__(self, head, text, times):
        super().__init__()
        self.text, self.left, self.taken, self.rest = text, times, 0, head

    def read(self, size=-1):
        while len(self.rest) < size and self.left:
            self.rest, self.left = self.rest + self.text, self.left - 1
        part, self.rest = self.rest[:size], self.rest[size:]
        self.taken += len(part)
        return part


def test_what_is_held_of_a_long_file_is_a_chunk():
    item = json.dumps({"id": 1, "segmentation": [[1.5] * 200]}) + ", "
    file = Endless('{"annotations": [', item, 8000)
    tracemalloc.start()
    held = 0
    with pytest.raises(ValueError, match="entry 8001"):
        for _, number, _ in entries(file, chunk=2**14):
            # Never far ahead of what was given out.
            assert file.taken - number * len(item) < 2**15
            held = max(held, tracemalloc.get_traced_memory()[1]) if number % 1000 == 0 else held
    tracemalloc.stop()
    assert file.taken > 8_000_000 and held < 2**19


@pytest.mark.parametrize("text", ['"', '{"b": 1 1, ', "["])
def test_an_item_without_an_end_is_not_read_to_the_end_of_the_file(text):
    file = Endless('{"annotations": [' + text, "1, ", 10**6)
    with pytest.raises(ValueError, match=r"^annotations, entry 1: damaged JSON .*over 10000 characters$"):
        list(entries(file, chunk=2**10, longest=10**4))
    assert file.taken < 2**14
