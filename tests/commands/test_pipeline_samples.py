"""`sample` of a run on a pipeline: what the config and the options say, as in the pipeline's own call."""

import json

import pytest
import torch
from pipeline_runs import config_file
from pipelines import build, call_arguments
from safetensors.torch import load_file

from pgraft_fast.cli import main
from pgraft_fast.commands.pipeline_config import read_pipeline_config
from pgraft_fast.commands.pipeline_source import subject_of_pipeline
from pgraft_fast.files import to_json

pytestmark = pytest.mark.slow

NEGATIVE = "a dark blur"


def run_of(folder, name="sd", model="", sample=""):
    """A run's folder of which the base alone is asked for: config and an empty result."""
    path = config_file(folder, name)
    text = (
        path.read_text()
        .replace("height = 16\n", f"height = 16\n{model}\n")
        .replace("[sample]\n", f"[sample]\n{sample}\n")
    )
    path.write_text(text)
    config = read_pipeline_config(path, {})
    run = folder / "run"
    run.mkdir()
    (run / "config.json").write_bytes(to_json(config.model_dump()))
    (run / "result.json").write_text("{}")
    return run, config


def drawn(run, *options):
    out = run / "out.safetensors"
    assert main(["sample", str(run), "--base", "--n", "2", "--seed", "5", "--out", str(out), *options]) == 0
    return load_file(out)["samples"]


def own(name, prompts, **call):
    """The pipeline's own pictures of these prompts, at the seeds of `drawn`."""
    pipe = build(name)
    generators = [torch.Generator().manual_seed(5 + number) for number in range(2)]
    size = {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}
    arguments = {**call_arguments(name), **size, **call, "prompt": prompts, "generator": generators}
    return pipe(**arguments).images * 2.0 - 1.0


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_the_negative_prompt_is_the_configs(tmp_path, name):
    run, _ = run_of(tmp_path, name, f'negative_prompt = "{NEGATIVE}"')
    prompts = ["a red cube", "two cats"]
    with_it, without = own(name, prompts, negative_prompt=[NEGATIVE] * 2), own(name, prompts)
    assert float((with_it - without).abs().max()) > 0.01
    assert torch.allclose(drawn(run), with_it, atol=1e-5)


def test_an_empty_negative_prompt_is_one(tmp_path):
    """SDXL has zeros in the place of one that is not given."""
    (tmp_path / "given").mkdir()
    run, _ = run_of(tmp_path / "given", "sdxl", 'negative_prompt = ""')
    prompts = ["a red cube", "two cats"]
    empty, absent = own("sdxl", prompts, negative_prompt=["", ""]), own("sdxl", prompts)
    assert float((empty - absent).abs().max()) > 0.01
    assert torch.allclose(drawn(run), empty, atol=1e-5)
    run, _ = run_of(tmp_path, "sdxl")
    assert torch.allclose(drawn(run), absent, atol=1e-5)


def test_an_empty_prompt_is_drawn(tmp_path):
    run, _ = run_of(tmp_path)
    assert torch.allclose(drawn(run, "--prompt", ""), own("sd", ["", ""]), atol=1e-5)
    assert torch.allclose(drawn(run, "--prompt", "x"), own("sd", ["x", "x"]), atol=1e-5)


@pytest.mark.parametrize("scale", ["0", "0.5", "1", "6"])
def test_every_guidance_is_that_of_the_option(tmp_path, scale):
    run, _ = run_of(tmp_path)
    wanted = own("sd", ["a red cube", "two cats"], guidance_scale=float(scale))
    assert torch.allclose(drawn(run, "--guidance", scale), wanted, atol=1e-5)


def test_a_solver_is_not_passed_over(tmp_path, capsys):
    run, _ = run_of(tmp_path)
    assert main(["sample", str(run), "--base", "--solver", "heun"]) == 2
    assert "--solver heun: pictures of" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
@pytest.mark.parametrize("negative", [None, "", NEGATIVE])
def test_the_other_side_of_guidance_in_rollouts(tmp_path, name, negative):
    """Of runs and of `evaluate`: the answer at guidance 3 is made of the network's at prompt and negative prompt."""
    model = "" if negative is None else f'negative_prompt = "{negative}"'
    _, config = run_of(tmp_path, name, model)
    subject = subject_of_pipeline(config, lambda text: None)
    pipe, heard = build(name), []
    net = pipe.unet if name != "sd3" else pipe.transformer
    net.register_forward_hook(lambda *args: heard.append(args[1:]), with_kwargs=True)
    steps = []
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda *args, **kwargs: steps.append(args) or step(*args, **kwargs)
    arguments = {**call_arguments(name), "height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 3.0}
    pipe(**{**arguments, "prompt": "a red cube", "negative_prompt": negative})
    task, (out, t, _) = subject.task, steps[0]
    args, kwargs, _ = heard[0]
    x = kwargs.get("hidden_states", args[0] if args else None)[:1]
    time = (t.double() / 1000 if name == "sd3" else (t.double() + 1) / 1000).float().reshape(1)
    # The first of the held-out prompts.
    number = task.held_out.condition[:1]
    task.held_out.prepare(torch.tensor([0]))
    assert torch.allclose(task.model(x, time, number), out, atol=1e-4)
    subject.close()


def test_eta_of_a_digits_run(tmp_path):
    """`sample` draws by the run's solver as its evaluations do, eta included."""
    samples = {}
    for eta in (None, 0.0, 1.0):
        run = tmp_path / str(eta)
        run.mkdir()
        config = {"run": str(run), "sample": {"steps": 4, "solver": "ddim", "eta": eta}}
        (run / "config.json").write_text(json.dumps(config))
        (run / "result.json").write_text("{}")
        samples[eta] = drawn(run)
    assert torch.equal(samples[None], samples[0.0]) and not torch.allclose(samples[1.0], samples[0.0], atol=0.1)


def test_the_tuned_model_has_a_guidance_of_its_own(tmp_path, capsys):
    """Plain diffusers: the LoRA and its scale for two of four steps, then the base and the run's scale."""
    path = config_file(tmp_path, rounds=1)
    path.write_text(path.read_text().replace("guidance = 3.0", "guidance = 3.0\nguidance_tuned = 1.5")
                    .replace("[train]\n", "[train]\ncut = 0.5\n"))  # fmt: skip
    assert main(["finetune", str(path)]) == 0
    run, out = tmp_path / "run", tmp_path / "out.safetensors"

    def ours(*options):
        assert (
            main(["sample", str(run), "--n", "2", "--seed", "5", "--prompt", "a cat", "--out", str(out), *options]) == 0
        )
        return load_file(out)["samples"]

    def plain(above, below):
        pipe = build("sd")
        pipe.load_lora_weights(run / "adapter")

        def callback(pipe, step, timestep, kwargs):
            if step == 1:
                pipe._guidance_scale = below
                pipe.unet.disable_adapters()
            return kwargs

        generators = [torch.Generator().manual_seed(5 + number) for number in range(2)]
        output = pipe(["a cat"] * 2, height=16, width=16, num_inference_steps=4, guidance_scale=above, output_type="pt",
                      generator=generators, callback_on_step_end=callback)  # fmt: skip
        return output.images * 2.0 - 1.0

    samples = ours()
    assert torch.allclose(samples, plain(1.5, 3.0), atol=1e-4)
    assert torch.allclose(ours("--guidance", "2.0"), plain(2.0, 2.0), atol=1e-4)
    assert not torch.allclose(samples, ours("--guidance", "3.0"), atol=1e-3)
    run_config = json.loads((run / "config.json").read_text())
    run_config["sample"]["guidance_tuned"] = 1.0
    (run / "config.json").write_bytes(to_json(run_config))
    capsys.readouterr()
    assert main(["sample", str(run), "--out", str(out)]) == 2
    assert "do not turn guidance on or off within a call" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guidance = 3.0\nguidance_tuned = 2.0", "DDPO trains the guided answer"),
        ("guidance = 1.0\nguidance_tuned = 2.0", "the candidates are drawn without guidance"),
    ],
)
def test_guidance_that_does_not_fit(tmp_path, capsys, text, message):
    path = config_file(tmp_path, top="method = 'ddpo'" if "DDPO" in message else "")
    path.write_text(path.read_text().replace("guidance = 3.0", text))
    assert main(["finetune", str(path)]) == 2
    assert f"sample.guidance_tuned=2.0: {message}" in capsys.readouterr().err
