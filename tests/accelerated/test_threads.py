"""Pipelines in several threads at once, with shared parts: each picture is the one that it is alone."""

import copy
import sys
import threading

import diffusers
import pytest
from accelerated.calls import call, off, taken_over
from pipelines import build
from repeats import repeats

from pgraft_fast import accelerate, load_adapter, restore

LIMIT = 1e-5
ROUNDS = 5


@pytest.fixture(autouse=True)
def _switching_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(*jobs):
    """What each of the functions returned or raised, all started together."""
    start, results = threading.Barrier(len(jobs)), [None] * len(jobs)

    def run(place, job):
        start.wait()
        try:
            results[place] = job()
        except BaseException as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def drawing(pipe, name, seed, **more):
    return lambda: [call(pipe, name, seed, **more) for _ in range(ROUNDS)]


def parts(name, own):
    """A second pipeline with the denoiser of the first and a scheduler of its own, or the same.

    Tokenizers are its own: transformers' fast ones keep padding and truncation as state, which plain pipelines in two
    threads take from each other too.
    """
    pipe = build(name)
    components = {
        part: copy.deepcopy(value) if part.startswith("tokenizer") else value for part, value in pipe.components.items()
    }
    if own:
        components["scheduler"] = copy.deepcopy(components["scheduler"])
    more = {"requires_safety_checker": False} if name == "sd" else {"add_watermarker": False} if name == "sdxl" else {}
    other = type(pipe)(**components, **more)
    other.set_progress_bar_config(disable=True)
    return pipe, other


SECOND = ("accelerated", "plain", "other steps")
SHARED = [*(("sd", second) for second in SECOND), ("sdxl", "other steps"), ("sd3", "accelerated"), ("ddim", "plain")]
OTHERS = [(name, second) for name in ("sdxl", "sd3", "ddim") for second in SECOND if (name, second) not in SHARED]


@pytest.mark.parametrize(("name", "second"), [*SHARED, *repeats(*OTHERS)])
def test_two_pipelines_that_share_a_denoiser(name, second):
    first, other = parts(name, own=True)
    steps = 5 if second == "other steps" else 4
    want = [call(first, name, 1).picture, call(other, name, 2, num_inference_steps=steps).picture]
    accelerate(first)
    if second != "plain":
        accelerate(other)
    denoiser = getattr(first, "unet", None) or first.transformer
    before = sorted(vars(denoiser))
    results = at_once(drawing(first, name, 1), drawing(other, name, 2, num_inference_steps=steps))
    for pictures, right in zip(results, want, strict=True):
        assert max(abs(result.picture - right).max() for result in pictures) < LIMIT
    assert taken_over(first) and sorted(vars(denoiser)) == before
    restore(first), restore(other)
    assert abs(call(first, name, 1).picture - want[0]).max() == 0.0


def test_one_pipeline_in_several_threads():
    """DDIM's steps know nothing of each other."""
    pipe = build("ddim")
    want = [call(pipe, "ddim", seed).picture for seed in range(4)]
    accelerate(pipe)
    for pictures, right in zip(at_once(*(drawing(pipe, "ddim", seed) for seed in range(4))), want, strict=True):
        assert max(abs(result.picture - right).max() for result in pictures) < LIMIT
    assert taken_over(pipe)


def test_fast_schedulers_in_several_threads():
    """The scheduler alone, in a pipeline's own loop: tables are worked out by several threads at once.

    Of a pipeline without a tokenizer, see `parts`.
    """
    pipe = build("ddim")
    want = [call(pipe, "ddim", seed).picture for seed in range(3)]
    from pgraft_fast.schedulers import FastDDIMScheduler

    pipe.scheduler = FastDDIMScheduler.from_config(pipe.scheduler.config)
    for pictures, right in zip(at_once(*(drawing(pipe, "ddim", seed) for seed in range(3))), want, strict=True):
        assert max(abs(result.picture - right).max() for result in pictures) < LIMIT


class BrokenError(Exception):
    """Of the test's own."""


@pytest.mark.parametrize(
    ("name", "error"),
    [("sd", BrokenError), ("sd", KeyboardInterrupt), ("pixart", BrokenError), *repeats(("pixart", KeyboardInterrupt))],
)
def test_an_exception_in_one_thread(name, error):
    pipe, other = parts(name, own=True)
    want = call(other, name, 2)
    accelerate(pipe), accelerate(other)
    call(pipe, name)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    state = sorted(vars(denoiser)), sorted(vars(pipe)), type(pipe)
    main, calls = threading.get_ident(), []

    def hook(module, args):
        if threading.get_ident() == main:
            calls.append(1)
            if len(calls) == 3:
                raise error

    layer = denoiser.conv_in if name == "sd" else denoiser.pos_embed
    handle, results = layer.register_forward_pre_hook(hook), []
    thread = threading.Thread(target=lambda: results.extend(drawing(other, name, 2)()))
    thread.start()
    with pytest.raises(error):
        call(pipe, name)
    thread.join()
    handle.remove()
    assert len(results) == ROUNDS and max(off(result, want) for result in results) < LIMIT
    assert (sorted(vars(denoiser)), sorted(vars(pipe)), type(pipe)) == state
    for _ in range(2):
        assert off(call(pipe, name, 2), want) < LIMIT
    restore(pipe)
    assert type(pipe) is getattr(diffusers, type(pipe).__name__) and off(call(pipe, name, 2), want) < LIMIT


def test_handover_in_several_threads(made):
    """The LoRA's switch is the denoiser's: nobody sees it turned by another thread."""
    saved = made("sd")
    pipe = load_adapter(copy.deepcopy(saved.pipe), saved.folder)
    more = {"num_inference_steps": 4}
    want = [call(pipe, "sd", seed, **more).picture for seed in range(2)]
    results = at_once(*(drawing(pipe, "sd", seed, **more) for seed in range(2)))
    for pictures, right in zip(results, want, strict=True):
        assert max(abs(drawn.picture - right).max() for drawn in pictures) == 0.0
