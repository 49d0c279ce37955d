"""Settings of scheduler and denoiser that change a pipeline's answer: a run does the same, or says what it does not."""

import shutil

import diffusers
import pytest
import torch
from pipeline_runs import config_file
from pipelines import build

from pgraft_fast.cli import main
from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.driven import Driven
from pgraft_fast.pipelines.facts import facts_of
from pgraft_fast.pipelines.loop import NotServedError


def facts(pipe, **options):
    return facts_of(Calls(pipe, ("a red cube", "two cats"), {"height": 16, "width": 16}, **options))


def rebuilt(net, **config):
    """The network made anew with other values, random weights."""
    torch.manual_seed(1)
    values = {key: value for key, value in net.config.items() if not key.startswith("_")}
    return type(net)(**{**values, **config}).eval()


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("PNDMScheduler", {}),
        ("DDPMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("KDPM2DiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {"prediction_type": "sample"}),
        ("UniPCMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        ("LCMScheduler", {"clip_sample": False}),
    ],
)
def test_schedulers_that_are_served(kind, config):
    pipe = build("sd")
    defaults = {key: value for key, value in pipe.scheduler.config.items() if key != "_use_default_values"}
    pipe.scheduler = scheduler = getattr(diffusers, kind).from_config({**defaults, **config})
    known = {"v_prediction": "v", "sample": "x_0"}
    assert facts(pipe).parameterization == known.get(config.get("prediction_type"), "epsilon")
    assert pipe.scheduler is scheduler and "step" not in vars(scheduler)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_guidance_scale_that_the_unet_is_told(name):
    pipe = build(name)
    pipe.unet = rebuilt(pipe.unet, time_cond_proj_dim=8)
    x, answers = torch.randn(1, 4, 8, 8), []
    for guidance in (1.0, 7.5):
        model = Driven.of(facts(pipe, guidance=guidance))
        assert model.calls_a_sample == 1 and model.facts.guided is model.facts.unguided
        with torch.no_grad():
            answers.append(model(x, torch.tensor([0.5]), torch.tensor([0])))
    assert not torch.allclose(*answers, atol=1e-3)


@pytest.mark.parametrize("key", ["clip_sample", "thresholding"])
def test_schedulers_that_cut_off_are_refused(key):
    pipe = build("sdxl")
    pipe.scheduler = diffusers.DDIMScheduler(**{"clip_sample": False, key: True})
    with pytest.raises(
        NotServedError, match=rf"scheduler.{key} = true cuts x_0 off .*register_to_config\({key}=False\)"
    ):
        facts(pipe)
    pipe.scheduler.register_to_config(**{key: False})
    facts(pipe)


class Louder(diffusers.DDIMScheduler):
    """A user's own: x_0 is another than that of the answer."""

    def step(self, model_output, timestep, sample, eta=0.0, generator=None, return_dict=True):
        return super().step(1.1 * model_output, timestep, sample, eta=eta, generator=generator, return_dict=return_dict)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (Louder.from_config, r"its scheduler makes another x_0 of an output than its settings tell \(off by 0\.\d+\)"),
        (lambda config: diffusers.EDMEulerScheduler(), r"its scheduler mixes \d\.\d+ of the data and"),
    ],
)
def test_schedulers_that_do_not_as_their_settings_tell(scheduler, message):
    pipe = build("sd")
    pipe.scheduler = scheduler(pipe.scheduler.config)
    with pytest.raises(NotServedError, match=message):
        facts(pipe)


def test_a_run_is_refused_before_it_begins(tmp_path, capsys):
    """In one line, with nothing drawn; and what the folder's variants are is an option of the config."""
    config = config_file(tmp_path)
    pipe = build("sd")
    pipe.unet = rebuilt(pipe.unet, in_channels=9)
    shutil.rmtree(tmp_path / "sd")
    pipe.save_pretrained(tmp_path / "sd", variant="fp16")
    config.write_text(config.read_text().replace('folder = "sd"', 'folder = "sd"\nvariant = "fp16"'))
    assert main(["finetune", str(config)]) == 2
    assert "its own call fails with these arguments: RuntimeError: " in capsys.readouterr().err
    config.write_text(config.read_text().replace('"fp16"', '"bf16"'))
    assert main(["finetune", str(config)]) == 2
    assert "model.variant = 'bf16': " in capsys.readouterr().err
    assert not (tmp_path / "run/evaluation").exists()
