"""Files of saved adapters: names in two formats, metadata, fingerprints, errors."""

import json
import math
from types import SimpleNamespace

import diffusers
import pytest
import safetensors.torch
import torch
from accelerated.calls import call, off
from pipelines import build

import pgraft_fast
from pgraft_fast import Schedule, load_adapter, unload_adapter
from pgraft_fast.errors import CheckpointError, InputError, StorageError
from pgraft_fast.pipelines.adapters.loading import AdapterMetadata, base_fingerprint, read_adapter, save_adapter

peft = pytest.importorskip("peft")
from accelerated.saved import NAMES, TARGETS, add_lora, denoiser_of, metadata_of  # noqa: E402


@pytest.fixture
def sd(made):
    return made("sd")


@pytest.mark.parametrize("name", NAMES)
def test_other_tools_names_load_in_diffusers(name, made):
    saved = made(name)
    tensors, metadata = read_adapter(saved.kohya)
    assert metadata == saved.metadata
    if name in ("sd", "sdxl"):
        place = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
        kinds = ("lora_down.weight", "lora_up.weight", "alpha")
        if name == "sd":
            assert [tuple(tensors[f"{place}.{kind}"].shape) for kind in kinds] == [(4, 16), (16, 4), ()]
        assert len(tensors) % 3 == 0 and all(key.startswith("lora_unet_") and key.count(".") <= 2 for key in tensors)
    else:
        assert all(
            key.startswith("transformer.") and key.endswith(("lora_A.weight", "lora_B.weight")) for key in tensors
        )
    plain = build(name)
    plain.load_lora_weights(saved.kohya)
    got = saved.draw(plain, callback_on_step_end=metadata.callback())
    assert off(got, saved.want) < 1e-5
    load_adapter(saved.pipe, saved.kohya)
    assert off(saved.draw(), saved.want) < 1e-5
    unload_adapter(saved.pipe)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_every_layer_with_ranks_of_its_own_in_other_tools_names(name, tmp_path):
    pipe = build(name)
    layers = [n for n, module in pipe.unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]
    own = {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_v": 3, "ff.net.2": 1}, "use_rslora": name == "sdxl"}
    add_lora(pipe, layers, r=3, lora_alpha=1, **own)
    want = call(pipe, name, num_inference_steps=2)
    for kind in ("kohya", "diffusers"):
        save_adapter(tmp_path, pipe.unet, metadata_of(pipe, cut=0.0), format=kind)
        plain, ours = build(name), build(name)
        plain.load_lora_weights(tmp_path)
        load_adapter(ours, tmp_path)
        for pipeline in (plain, ours):
            assert off(call(pipeline, name, num_inference_steps=2), want) < 1e-4
    assert len(layers) > 80 and off(call(build(name), name, num_inference_steps=2), want) > 1e-2


def test_metadata(sd, tmp_path):
    tensors, metadata = read_adapter(sd.folder)
    assert metadata == sd.metadata and AdapterMetadata.from_json(metadata.to_json()) == metadata
    assert metadata.target_modules == tuple(sorted(TARGETS)) and (metadata.rank, metadata.alpha) == (4, 12.0)
    assert (
        metadata.base_class == "UNet2DConditionModel"
        and metadata.reward == "brightness"
        and metadata.extra == {"rounds": 3}
    )
    assert metadata.version == pgraft_fast.__version__
    assert Schedule.from_dict(metadata.schedule).cut_logsnr(metadata.cut) == metadata.cut_logsnr
    with safetensors.safe_open(sd.file, framework="pt") as opened:
        texts = opened.metadata()
    assert set(texts) == {"format", "lora_adapter_metadata", "pgraft_fast"}
    assert json.loads(texts["lora_adapter_metadata"])["unet.lora_alpha"] == 12
    assert json.loads(texts["pgraft_fast"])["cut_logsnr"] == metadata.cut_logsnr
    # As diffusers itself would have written them.
    theirs = peft.get_peft_model_state_dict(sd.tuned.unet, adapter_name="tuned")
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, theirs)
    theirs = safetensors.torch.load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert theirs.keys() == tensors.keys() and all(torch.equal(theirs[key], tensors[key]) for key in theirs)
    for value in (math.nan, object()):
        with pytest.raises(InputError, match=r"^extra: [^\n]+ JSON [^\n]+$"):
            metadata_of(sd.tuned, extra={"loss": value})
    later = json.loads(metadata.to_json()) | {"of_a_later_version": 1}
    assert AdapterMetadata.from_json(json.dumps(later)) == metadata
    for broken in ("[]", "{", json.dumps(later | {"cut": 0.0}), json.dumps(later | {"rank": "four"})):
        with pytest.raises(CheckpointError, match=r"^no metadata of an adapter \([^\n]+\)$"):
            AdapterMetadata.from_json(broken)


def test_equal_tensors_give_equal_bytes(sd, tmp_path):
    for kind, file in (("diffusers", sd.file), ("kohya", sd.kohya)):
        for place in range(4):
            again = save_adapter(tmp_path / f"{kind}{place}", sd.tuned.unet, sd.metadata, format=kind)
            assert again.name == "pytorch_lora_weights.safetensors" and again.read_bytes() == file.read_bytes()
    assert [path.name for path in again.parent.iterdir()] == [again.name]
    data = sd.file.read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    assert (
        len(header) % 8 == 0
        and json.dumps(json.loads(header), sort_keys=True, separators=(",", ":")).encode() == header.strip()
    )


@pytest.mark.parametrize("name", NAMES)
def test_fingerprint(name, made):
    saved = made(name)
    own = saved.fingerprint
    assert len(own) == 64 and base_fingerprint(denoiser_of(saved.tuned)) == own == base_fingerprint(
        denoiser_of(build(name))
    )
    assert base_fingerprint(denoiser_of(build(name, seed=1))) != own
    assert base_fingerprint(SimpleNamespace(_orig_mod=denoiser_of(saved.tuned))) == own
    half = denoiser_of(build(name)).half()
    assert base_fingerprint(half) == own == base_fingerprint(half.float())
    with torch.no_grad():
        next(half.parameters()).mul_(1.01)
    assert base_fingerprint(half) != own
    with pytest.raises(InputError, match=r"is offloaded, its weights cannot be read"):
        base_fingerprint(half.to("meta"))


def test_files_that_are_not_adapters(sd, tmp_path):
    def fails(path, line):
        with pytest.raises(CheckpointError, match=line) as caught:
            read_adapter(path)
        assert "\n" not in str(caught.value)

    fails(tmp_path / "none.safetensors", "there is no such file")
    fails(tmp_path, "pytorch_lora_weights.safetensors: there is no such file")
    file = tmp_path / "one.safetensors"
    for data in (b"", b"no tensors", sd.file.read_bytes()[:-9]):
        file.write_bytes(data)
        fails(file, "damaged, or no safetensors file")
    safetensors.torch.save_file({"a": torch.zeros(1)}, file)
    fails(file, "has no pgraft_fast metadata")
    safetensors.torch.save_file({"a": torch.zeros(1)}, file, {"pgraft_fast": '{"task": "digits"}'})
    fails(file, r"no metadata of an adapter \(cut: ")


def test_what_cannot_be_saved(sd, tmp_path):
    with pytest.raises(InputError, match=r"^format='webui' is unknown; known: diffusers, kohya$"):
        save_adapter(tmp_path, sd.tuned.unet, sd.metadata, format="webui")
    with pytest.raises(InputError, match=r"^there is no adapter 'other' on UNet2DConditionModel, it has tuned$"):
        save_adapter(tmp_path, sd.tuned.unet, sd.metadata, adapter_name="other")
    with pytest.raises(InputError, match=r"^there is no adapter 'tuned' on UNet2DConditionModel, it has none; add one"):
        save_adapter(tmp_path, sd.pipe.unet, sd.metadata)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file.pytorch_lora_weights.safetensors: cannot be written"):
        save_adapter(tmp_path / "file", sd.tuned.unet, sd.metadata)
    pipe = build("sd")
    add_lora(pipe, use_dora=True)
    with pytest.raises(InputError, match=r"^format='kohya' has plain LoRA only, .*: save it as 'diffusers'$"):
        save_adapter(tmp_path, pipe.unet, sd.metadata, format="kohya")
    pipe = build("sd")
    pipe.unet.add_adapter(peft.LoKrConfig(target_modules=TARGETS), "tuned")
    with pytest.raises(InputError, match=r"^the adapter 'tuned' is no LoRA, its configuration is LoKrConfig$"):
        save_adapter(tmp_path, pipe.unet, sd.metadata)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    "hostile",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "evil_core"}, {"init_lora_weights": "pissa"},
        {"auto_mapping": {"parent_library": "evil_core"}}, {"eva_config": {"rho": 1}}, {"loftq_config": {"x": 1}},
    ],
)  # fmt: skip
def test_a_configuration_that_names_code(sd, tmp_path, monkeypatch, hostile):
    """Only what the LoRA's output follows from is taken from a file."""
    (tmp_path / "evil_core.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = with_configuration(sd, tmp_path, hostile)
    load_adapter(sd.pipe, file)
    assert off(sd.draw(), sd.want) < 1e-5
    unload_adapter(sd.pipe)
    assert off(sd.draw(), sd.base) == 0.0 and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "damaged", [{"r": "x"}, {"r": -1}, {"target_modules": 7}, {"lora_alpha": []}, {"rank_pattern": 3}]
)
def test_a_configuration_that_is_damaged(sd, tmp_path, damaged):
    """Is refused in a line, and the pipeline is as before."""
    with pytest.raises((CheckpointError, InputError)) as caught:
        load_adapter(sd.pipe, with_configuration(sd, tmp_path, damaged))
    assert str(caught.value).isprintable()
    assert off(sd.draw(), sd.base) == 0.0


def with_configuration(sd, folder, changes):
    """The saved file with values of its LoRA's configuration replaced."""
    data = sd.file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    texts = header["__metadata__"]
    config = json.loads(texts["lora_adapter_metadata"])
    prefix = next(iter(config)).partition(".")[0]
    config |= {f"{prefix}.{name}": value for name, value in changes.items()}
    file = folder / "changed.safetensors"
    tensors = safetensors.torch.load_file(sd.file)
    safetensors.torch.save_file(tensors, file, {**texts, "lora_adapter_metadata": json.dumps(config)})
    return file
