"""Adapters on other schedules and at other sizes than those of their training: told once, and drawn as before."""

import math
import warnings

import diffusers
import pytest
import torch
from accelerated.calls import call
from pipelines import build

from pgraft_fast import PGraftCallback, Schedule, load_adapter
from pgraft_fast.pipelines.adapters.loading import read_adapter, save_adapter
from pgraft_fast.pipelines.adapters.moved_cut import moved_by_schedule, moved_by_size

peft = pytest.importorskip("peft")
from accelerated.saved import NAMES, add_lora, denoiser_of, metadata_of  # noqa: E402


def saved(name, folder, shape, cut=0.4):
    pipe = build(name)
    add_lora(pipe)
    save_adapter(folder, denoiser_of(pipe), metadata_of(pipe, cut=cut, sample_shape=shape))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_another_size_is_told_once_for_each_size(name, tmp_path):
    pipe = build(name)
    seen = []
    call(pipe, name, callback_on_step_end=lambda pipe, step, time, tensors: seen.append(tensors["latents"]) or tensors)
    channels = pipe.vae.config.latent_channels
    positions = seen[0][0].numel() // channels
    side = math.isqrt(positions)
    assert side * side == positions
    load_adapter(pipe, saved(name, tmp_path / "same", (channels, side, side)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        same = call(pipe, name).picture
    load_adapter(pipe, saved(name, tmp_path / "other", (channels, side // 2, side)))
    with pytest.warns(UserWarning, match=rf"{side // 2} x {side}, and here are 2 times .* log-SNR that is -0.69 away"):
        assert abs(call(pipe, name).picture - same).max() == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        call(pipe, name)
    # Who sets the cut is told nothing.
    load_adapter(pipe, saved(name, tmp_path / "more", (channels, side // 2, side // 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        call(pipe, name, callback_on_step_end=PGraftCallback(cut_logsnr=0.0))


def test_the_size_of_a_call(tmp_path):
    pipe = build("sd")
    factor = pipe.vae_scale_factor
    for arguments, positions in (
        ({"height": 4 * factor, "width": 8 * factor}, 32), ({"latents": torch.zeros(3, 4, 6, 6)}, 36),
        ({"latents": torch.zeros(3, 9, 16), "height": 64}, 36),
    ):  # fmt: skip
        message = moved_by_size(pipe, arguments, (4, 2, 2), 0.5)
        assert f"{positions / 4:.3g} times as many" in message and f"{-math.log(positions / 4):+.2f}" in message
        assert moved_by_size(pipe, arguments, (4, positions, 1), 0.5) is None
    assert "+1.39 away" in moved_by_size(pipe, {"latents": torch.zeros(1, 4, 2, 2)}, (4, 4, 4), 0.5)


def test_another_schedule_is_told_when_it_is_loaded(tmp_path):
    file, pipe = saved("sd", tmp_path / "a", None), build("sd")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_adapter(pipe, file)
    pipe.scheduler = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    here, there = Schedule.from_diffusers(pipe.scheduler).cut_logsnr(0.4), read_adapter(file)[1].cut_logsnr
    assert abs(here - there) > 0.05
    with pytest.warns(
        UserWarning, match=rf"log-SNR of {there:.2f}; on the schedule of this DDIMScheduler .* {here:.2f}"
    ):
        load_adapter(pipe, file)
    # GRAFT hands nothing over, and of an unknown schedule nothing is told.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_adapter(pipe, saved("sd", tmp_path / "graft", None, cut=0.0))
    assert moved_by_schedule(object(), 0.4, 1.0) is None
