"""Captures on a stand-in for torch.cuda: what is measured, on which stream, and what a failure leaves behind."""

import gc

import pytest
import torch
from cuda_stand_in import CACHED, CAPTURED

from pgraft_fast.sampling import GraphCache, graphs


def double(inputs, generators):
    return [2 * inputs[0]]


def failing(times, error):
    """Runs so often, and raises from then on, as what cannot be captured does."""
    left = [times]

    def function(inputs, generators):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return [2 * inputs[0]]

    return function


def test_bytes_are_those_of_the_capture_alone(cuda):
    cache = GraphCache()
    for number in range(2):
        cuda.cached = CACHED
        cache.run(number, double, [torch.ones(2)])
    assert cache.bytes == 2 * CAPTURED


def test_memory_limit_bites(cuda):
    cache = GraphCache(memory_limit=CAPTURED)
    for number in range(3):
        cuda.cached = CACHED
        cache.run(number, double, [torch.ones(2)])
    assert len(cache) == 1


def test_all_captures_are_on_one_stream(cuda):
    cache = GraphCache()
    for number in range(3):
        cache.run(number, double, [torch.ones(2)])
    assert len(cuda.used) == 3 and len({id(stream) for stream in cuda.used}) == 1


def test_a_failed_capture_is_told_and_nothing_is_captured_after_it(cuda, caplog):
    cache = GraphCache()
    before = cache.run("before", double, [torch.ones(2)])
    error = RuntimeError("operation not permitted when stream is capturing\nCompile with ...")
    assert cache.run("bad", failing(2, error), [torch.ones(2)]) is None
    assert "could not be captured: operation not permitted when stream is capturing; this process" in caplog.text
    assert cuda.now is cuda.default
    # Others, of another cache too, run plainly; a graph that was there goes on.
    captures = len(cuda.used)
    assert cache.run("next", double, [torch.ones(2)]) is None
    assert GraphCache().run("other", double, [torch.ones(2)]) is None
    assert len(cuda.used) == captures
    assert torch.equal(cache.run("before", double, [torch.ones(2)])[0], before[0])


def test_memory_that_ends_in_a_capture_refuses_that_shape_alone(cuda, caplog):
    cache = GraphCache()
    assert cache.run("large", failing(2, torch.OutOfMemoryError("full")), [torch.ones(2)]) is None
    assert "memory did not suffice" in caplog.text and cuda.now is cuda.default
    assert cache.run("small", double, [torch.ones(2)]) is not None


def test_what_the_function_itself_raises_is_raised(cuda):
    with pytest.raises(ValueError, match="no such layer"):
        GraphCache().run("wrong", failing(0, ValueError("no such layer")), [torch.ones(2)])
    assert not graphs._failed


def test_no_garbage_is_collected_while_a_graph_is_captured(cuda):
    """It may be another graph, whose end a capture does not bear."""
    states, cache = [], GraphCache()

    class Garbage:
        def __del__(self):
            states.append("freed")

    def leave_a_circle():
        first = Garbage()
        first.itself = first

    def watched(inputs, generators):
        states.append(gc.isenabled())
        return [2 * inputs[0]]

    gc.disable()
    try:
        leave_a_circle()
        gc.enable()
        cache.run("a", watched, [torch.ones(2)])
        # Twice before, once captured.
        assert states == [True, True, "freed", False] and gc.isenabled()
        cache.run("bad", failing(2, RuntimeError("not permitted")), [torch.ones(2)])
        assert gc.isenabled()
    finally:
        gc.enable()


def test_who_has_switched_collection_off_finds_it_off(cuda):
    gc.disable()
    try:
        GraphCache().run("a", double, [torch.ones(2)])
        assert not gc.isenabled()
    finally:
        gc.enable()
