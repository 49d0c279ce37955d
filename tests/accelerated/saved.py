"""A small LoRA, saved in every format, with the pictures that it has to give."""

import peft
import torch
from accelerated.calls import call
from pipelines import build

from pgraft_fast import PGraftCallback, Schedule
from pgraft_fast.pipelines.adapters.loading import AdapterMetadata, base_fingerprint, read_adapter, save_adapter

NAMES = ("sd", "sdxl", "sd3", "flux")
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
STEPS = 4
CLOSE = 1.0 / 255.0


def denoiser_of(pipe):
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def add_lora(pipe, targets=TARGETS, seed=1, **options):
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 12, "init_lora_weights": False} | options
    denoiser_of(pipe).add_adapter(peft.LoraConfig(target_modules=targets, **options), "tuned")


def metadata_of(pipe, cut=0.4, **more):
    flow = hasattr(pipe, "transformer")
    schedule = Schedule.linear_flow() if flow else Schedule.from_diffusers(pipe.scheduler)
    kind = "velocity" if flow else "epsilon"
    return AdapterMetadata.of(denoiser_of(pipe), cut=cut, schedule=schedule, parameterization=kind, **more)


class Saved:
    """A tuned pipeline's files, and a pipeline of the base that tests load them into and leave as it was."""

    def __init__(self, name, folder):
        self.name, self.folder, self.kohya = name, folder / "tuned", folder / "kohya.safetensors"
        tuned = build(name)
        self.fingerprint = base_fingerprint(denoiser_of(tuned))
        add_lora(tuned)
        self.metadata = metadata_of(tuned, reward="brightness", extra={"rounds": 3})
        self.file = save_adapter(self.folder, denoiser_of(tuned), self.metadata)
        save_adapter(self.kohya, denoiser_of(tuned), self.metadata, format="kohya")
        self.graft = folder / "graft.safetensors"
        save_adapter(self.graft, denoiser_of(tuned), metadata_of(tuned, cut=0.0))
        self.tuned, self.pipe = tuned, build(name)
        self.base, self.whole = self.draw(), self.draw(tuned)
        plain = build(name)
        plain.load_lora_weights(self.folder)
        self.plain = plain
        handover = PGraftCallback(cut_logsnr=read_adapter(self.folder)[1].cut_logsnr)
        self.want = self.draw(plain, callback_on_step_end=handover)

    def draw(self, pipe=None, **more):
        return call(pipe or self.pipe, self.name, num_inference_steps=STEPS, **more)


def state_of(pipe):
    """What a user can see and touch, by identity."""
    denoiser = denoiser_of(pipe)
    weights = {name: (id(weight), weight.requires_grad) for name, weight in denoiser.named_parameters()}
    return type(pipe), sorted(vars(pipe)), sorted(vars(denoiser)), pipe.scheduler, weights, str(pipe.config)


def saver(tmp_path_factory):
    """get(name): what is saved of that pipeline, made once."""
    saved_pipelines = {}

    def get(name):
        if name not in saved_pipelines:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            saved_pipelines[name] = Saved(name, tmp_path_factory.mktemp(name))
            torch.set_num_threads(threads)
        return saved_pipelines[name]

    return get
