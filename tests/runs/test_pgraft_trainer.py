"""Fine-tuning of pipelines from Python: whole runs, and what their adapters do in the pipeline."""

import functools
import math
import wave

import every_pipeline
import numpy as np
import pytest
import torch
from every_pipeline import SERVED, prompts_of
from toy_pipeline import toy

import pgraft_fast as pf
from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError, StoppedError
from pgraft_fast.pipelines.adapters.callback import _logsnr_of_steps
from pgraft_fast.pipelines.adapters.files import read_adapter
from pgraft_fast.pipelines.media import differ, media_of

pytestmark = pytest.mark.slow

QUICK = ("sd", "flux", "wan", "audioldm2", "dit")
# The last one is no class of diffusers, and its denoiser has no usual name.
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.faults) for name in SERVED] + ["toy"]


def build(name):
    return toy() if name == "toy" else every_pipeline.build(name)


def call_of(name):
    return {} if name == "toy" else every_pipeline.call_of(name)


def brightness(media, prompts):
    assert len(media) == len(prompts)
    return [float(picture.astype(np.float64).mean()) for picture in media]


def config_of(run, **options):
    small = {"steps": 4, "candidates": 4, "keep": 1, "prompts": 2, "epochs": 1, "batch_size": 2, "evaluate": 4}
    return pf.PGraftConfig(**{**small, "cut": 0.5, "lora": pf.Lora(rank=2), "run": str(run), **options})


def trainer_of(name, run, **options):
    pipe = build(name)
    return pipe, pf.PGraftTrainer(
        pipe, brightness, prompts_of(name), config_of(run, **options), call=call_of(name), log=lambda text: None
    )


def drawn(pipe, name, steps=5):
    prompts = {"dit": {"class_labels": [1]}, "ddpm": {}, "ddim": {}}
    arguments = {**prompts.get(name, {"prompt": "a red cube"}), **call_of(name)}
    return pipe(**arguments, num_inference_steps=steps, generator=torch.Generator().manual_seed(3))


def merged(pipe, tensors):
    """The denoiser's weights with the LoRA added to them, W + B A with alpha equal to the rank; the base's own."""
    net = next(part for part in (getattr(pipe, name, None) for name in ("transformer", "unet", "net")) if part)
    base = {name: value.clone() for name, value in net.state_dict().items()}
    tuned = dict(base)
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            layer = name.partition(".")[2].removesuffix(".lora_A.weight")
            up = tensors[name.replace("lora_A", "lora_B")]
            change = up.flatten(1) @ down.flatten(1)
            tuned[f"{layer}.weight"] = base[f"{layer}.weight"] + change.view_as(base[f"{layer}.weight"])
    return net, base, tuned


def drawn_by_hand(name, file, steps=5):
    """Weights are exchanged before the step at which the noise is at the cut; the first step is the LoRA's."""
    tensors, metadata = read_adapter(file)
    pipe = build(name)
    net, base, tuned = merged(pipe, tensors)
    scheduler, plain, done = pipe.scheduler, pipe.scheduler.step, []

    def step(*args, **kwargs):
        result = plain(*args, **kwargs)
        left_out = len(scheduler.timesteps) - calls
        done.append(1)
        following = left_out + len(done)
        if (
            following < len(scheduler.timesteps)
            and _logsnr_of_steps(scheduler)[following] >= metadata.cut_logsnr - 1e-6
        ):
            net.load_state_dict(base)
        return result

    counted = []
    # The pipelines look at its signature.
    scheduler.step = functools.wraps(plain)(lambda *args, **kwargs: (counted.append(1), plain(*args, **kwargs))[1])
    drawn(pipe, name, steps)
    calls = len(counted)
    scheduler.step = functools.wraps(plain)(step)
    net.load_state_dict(tuned)
    return drawn(pipe, name, steps)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_and_its_adapter(name, tmp_path):
    cut = 0.75 if name == "wan22" else 0.5
    pipe, trainer = trainer_of(name, tmp_path / "run", cut=cut, learning_rate=3e-2, ema=0.0)
    before = drawn(pipe, name)
    result = trainer.train()
    # The pipeline is as it was.
    assert not differ(media_of(drawn(pipe, name)), media_of(before), 0.0)
    assert result.report.is_file() and result.cut == cut and len(result.history) == 1
    assert result.before.interval[0] <= result.before.reward <= result.before.interval[1]
    assert result.history[0].accepted >= 1 and math.isfinite(result.after.reward)
    pf.load_adapter(pipe, result.adapter)
    output = drawn(pipe, name)
    assert not differ(media_of(output), media_of(drawn_by_hand(name, result.adapter)), 1e-4)
    assert any(not np.array_equal(*pair) for pair in zip(media_of(output), media_of(before), strict=True))
    pf.unload_adapter(pipe)
    assert not differ(media_of(drawn(pipe, name)), media_of(before), 0.0)


@pytest.mark.parametrize("method", ["graft", "ddpo"])
def test_baselines(method, tmp_path):
    _, trainer = trainer_of("sd3", tmp_path / "run", method=method, rounds=2)
    result = trainer.train()
    assert result.cut == 0.0 and len(result.history) == 2
    assert read_adapter(result.adapter)[1].cut_logsnr is None


def test_all_weights(tmp_path):
    pipe, trainer = trainer_of("flux", tmp_path / "run", lora=pf.Lora(rank=0))
    held = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    result = trainer.train()
    assert result.adapter.name == "model.safetensors"
    assert all(torch.equal(held[name], value) for name, value in pipe.transformer.state_dict().items())


def test_a_stopped_run_goes_on_to_the_same_end(tmp_path):
    _, whole = trainer_of("sd", tmp_path / "whole", rounds=3)
    expected = whole.train()

    def stop(number, entry):
        if number == 2:
            raise StoppedError("stopped by hand")

    pipe, trainer = trainer_of("sd", tmp_path / "parts", rounds=3)
    trainer._on_round = stop
    with pytest.raises(StoppedError):
        trainer.train()
    assert not hasattr(pipe.unet, "peft_config")
    pipe, trainer = trainer_of("sd", tmp_path / "parts", rounds=3)
    resumed = trainer.train()
    assert resumed.adapter.read_bytes() == expected.adapter.read_bytes()
    assert resumed.after == expected.after and resumed.model_calls == expected.model_calls
    config, call = config_of(tmp_path / "parts", rounds=3), {"eta": 0.5}
    with pytest.raises(InputError, match=r"^call="):
        pf.PGraftTrainer(pipe, brightness, prompts_of("sd"), config, call=call, log=lambda text: None).train()


def test_an_image_to_image_run_starts_at_its_strength(tmp_path):
    """The states begin as the pipeline prepares them, at the noise of its strength, and the cut counts from there."""
    pipe = build("sd_img2img")
    call = {**call_of("sd_img2img"), "strength": 0.5}
    trainer = pf.PGraftTrainer(pipe, brightness, prompts_of(""), config_of(tmp_path), call=call, log=lambda text: None)
    result = trainer.train()
    metadata = read_adapter(result.adapter)[1]
    schedule = Schedule.from_dict(metadata.schedule)
    assert schedule.t_begin == pytest.approx(0.5, abs=0.01)
    assert metadata.cut_logsnr == pytest.approx(float(schedule.logsnr(schedule.t_begin / 2.0)), abs=0.1)


def training_of(**options):
    arguments = {"pipe": build("sd"), "reward": brightness, "prompts": ["a", "b"], **options}
    run = arguments.pop("run", "unused")
    config = arguments.pop("config", None) or config_of(run)
    return lambda: pf.PGraftTrainer(**arguments, config=config, log=lambda text: None).train()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"pipe": 3}, "pipe: int is no pipeline of diffusers, it has no scheduler"),
        ({"prompts": []}, "prompts: give a list with at least one prompt"),
        ({"prompts": "a red cube"}, "prompts: give a list with at least one prompt"),
        ({"call": {"hight": 3}}, "call: StableDiffusionPipeline takes no hight"),
        ({"call": {"prompt": "a"}}, "call: prompt is what the prompts are; give it as prompts"),
        ({"call": {"num_inference_steps": 3}}, "call: num_inference_steps is set by the run, leave it out"),
        (
            {"call": {"clip_skip": "x"}},
            "StableDiffusionPipeline: its own call fails with these arguments: TypeE.*",
        ),
        ({"reward": "score"}, "reward 'score': expected file.py:function"),
        ({"reward": [brightness, 3]}, "reward: int is neither a function, nor file.py:function, nor a list of these"),
    ],
)
def test_wrong_input_is_one_line(options, line, tmp_path):
    with pytest.raises(pf.errors.PgraftError, match=f"^{line}$") as caught:
        training_of(run=tmp_path / "run", **options)()
    assert "\n" not in str(caught.value)


def test_a_reward_of_another_medium(tmp_path):
    def loudness(media, prompts):
        return [0.0] * len(media)

    loudness.medium = "audio"
    with pytest.raises(InputError, match=r"^reward 'loudness' takes audio, the pipeline makes image$"):
        training_of(run=tmp_path / "run", reward=loudness)()


def test_rewards_get_what_the_pipeline_returns(tmp_path):
    """Several with weights; audio with its rate; pictures as bytes, or for ours in [-1, 1]."""
    seen = {}

    def loudness(media, prompts, rate):
        seen["audio"] = (media[0].shape[0], media[0].dtype, rate)
        return [float(np.square(clip).mean()) for clip in media]

    pipe = build("audioldm2")
    result = pf.PGraftTrainer(
        pipe, [(loudness, 2.0), brightness], ["a", "b"], config_of(tmp_path / "audio"), call=call_of("audioldm2"),
        log=lambda text: None,
    ).train()  # fmt: skip
    assert seen["audio"] == (1, np.float32, float(pipe.vocoder.config.sampling_rate))
    # The report plays three samples of each side.
    assert result.report.read_text().count("<audio controls") == 6
    with wave.open(str(result.report.parent / "sample-after-3.wav")) as sound:
        assert (sound.getframerate(), sound.getnchannels()) == (pipe.vocoder.config.sampling_rate, 1)

    def pixels(media, prompts):
        seen["pixels"] = (tuple(media.shape), float(media.min()))
        return media.mean(dim=(1, 2, 3))

    pixels.medium = "pixels"
    training_of(run=tmp_path / "pixels", reward=pixels)()
    assert seen["pixels"][0][1:] == (3, 16, 16) and -1.0 <= seen["pixels"][1] < 0.0


def test_each_prompt_with_a_picture_of_its_own(tmp_path):
    """Image to image: the states of a prompt start from its own picture."""
    seen = {}

    def closeness(media, prompts):
        for image, prompt in zip(media, prompts, strict=True):
            seen.setdefault(prompt, []).append(float(image.mean()))
        return [0.01 * number for number in range(len(media))]

    call = call_of("sd_img2img")
    picture = call.pop("image")
    prompts = [{"prompt": "a", "image": picture}, {"prompt": "b", "image": picture.point(lambda value: 255 - value)}]
    pf.PGraftTrainer(
        build("sd_img2img"), closeness, prompts, config_of(tmp_path / "run"), held_out=[prompts[0]],
        call={**call, "strength": 0.3}, log=lambda text: None,
    ).train()  # fmt: skip
    assert set(seen) == {"a", "b"}
