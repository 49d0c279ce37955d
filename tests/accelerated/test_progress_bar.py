"""The progress bar of an accelerated pipeline counts the steps that are made."""

import io
import re

import pytest
from accelerated.calls import call
from pipelines import NAMES, build

from pgraft_fast import accelerate


def bars(pipe, name, **more):
    """(steps, total) of each bar at its end."""
    output = io.StringIO()
    pipe.set_progress_bar_config(file=output, disable=False)
    call(pipe, name, **more)
    ends = [line.strip() for line in re.split(r"[\r\n]+", output.getvalue()) if line.strip()]
    counts = [tuple(map(int, re.search(r"(\d+)/(\d+) \[", line).groups())) for line in ends]
    assert all(counts[i][0] <= counts[i + 1][0] for i in range(len(counts) - 1))
    return counts[-1], output.getvalue().count("\n")


@pytest.mark.parametrize("name", NAMES)
def test_all_steps(name, steps=4):
    pipe = build(name)
    want = bars(pipe, name, num_inference_steps=steps)
    assert want == ((steps, steps), 1)
    accelerate(pipe)
    for _ in range(2):
        assert bars(pipe, name, num_inference_steps=steps) == want


def test_a_part_of_the_steps():
    pipe = build("sdxl")
    want = bars(pipe, "sdxl", num_inference_steps=8, denoising_end=0.5)
    accelerate(pipe)
    for _ in range(2):
        assert bars(pipe, "sdxl", num_inference_steps=8, denoising_end=0.5) == want == ((4, 4), 1)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_with_a_callback_that_interrupts(name):
    def stop(pipe, step, t, tensors):
        pipe._interrupt = step == 2
        return tensors

    pipe = build(name)
    want = bars(pipe, name, num_inference_steps=6, callback_on_step_end=stop)
    accelerate(pipe)
    for _ in range(2):
        call(pipe, name)
        assert bars(pipe, name, num_inference_steps=6, callback_on_step_end=stop) == want == ((3, 6), 1)


def test_an_error_closes_the_bar():
    pipe = accelerate(build("ddim"))
    call(pipe, "ddim")
    output, layer, made = io.StringIO(), pipe.unet.conv_in, []

    def failing(x):
        made.append(x)
        if len(made) == 3:
            raise RuntimeError("the third step fails")
        return type(layer).forward(layer, x)

    layer.forward = failing
    pipe.set_progress_bar_config(file=output, disable=False)
    with pytest.raises(RuntimeError):
        call(pipe, "ddim")
    assert "| 2/4 [" in output.getvalue() and output.getvalue().endswith("\n")
