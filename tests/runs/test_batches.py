"""memory = "auto": what is found by the probe of a card, which is played here."""

import json

import pytest
import torch
from pipelines import build
from torch import nn

import pgraft_fast as pf
from pgraft_fast.commands.pipeline_config import PipelineConfig
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import execution
from pgraft_fast.runs import run as runs
from pgraft_fast.runs.batches import MEMORY, fitted, with_batches
from pgraft_fast.runs.model_run import model_settings, model_subject
from pgraft_fast.runs.pipeline_run import PipelineParts, Scored, pipeline_subject
from pgraft_fast.runs.prompts import RunPrompts
from pgraft_fast.runs.rewards import weighted
from pgraft_fast.sampling.card import Card, rows_that_fit
from pgraft_fast.tasks.pipeline import of_media

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_twins(monkeypatch):
    """What is made for slow CPUs alone does not follow a switch of checkpointing."""
    monkeypatch.setattr(execution, "onednn_pays", lambda: False)


class PlayedCard(Card):
    """Bytes and seconds by the rows that the networks were called with: `each` bytes a row without gradients, ten times
    that with, three times where activations are recomputed; up to 8 rows take a second.
    """

    def __init__(self, *nets, each=100, free=10_000):
        super().__init__(CPU)
        self.each, self._free, self._rows, self.probes = each, free, [], 0

        def tell(net, args, kwargs):
            # A function, no method: copies of a network tell this card, too.
            self._called(net, args, kwargs)

        for net in nets:
            net.register_forward_pre_hook(tell, with_kwargs=True)

    def _called(self, net, args, kwargs):
        rows = (args[0] if args else kwargs["sample"]).shape[0]
        factor = 1
        if torch.is_grad_enabled():
            factor = 3 if getattr(net, "is_gradient_checkpointing", False) else 10
        self._rows.append((rows, factor))

    def free(self):
        return self._free

    def peak(self, work):
        self.probes += 1
        self._rows.clear()
        work()
        return max(self.each * rows * factor for rows, factor in self._rows)

    def seconds(self, work):
        self._rows.clear()
        work()
        return max(1.0, max(rows for rows, _ in self._rows) / 8)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, t):
        return self.weight * x


def brightness(samples, prompts):
    return samples.flatten(1).mean(1)


def own_model(net=None, **options):
    config = {"prompts": 6, "candidates": 4, "steps": 5, "keep": 1, "batch_size": 8} | options
    return model_subject(
        Net() if net is None else net, pf.Schedule.vp_linear(), brightness, None,
        model_settings(pf.PGraftConfig(**config)), shape=(2, 3), parameterization="epsilon",
    )  # fmt: skip


def probed(subject, run=None, **card):
    net, lines = subject.task.model, []
    played = PlayedCard(*([net] if isinstance(net, Net) else [net.facts.pipe.unet, net.facts.pipe.vae.decoder]), **card)
    return fitted(subject, played, run, lines.append), played, lines


def test_on_a_cpu_nothing_is_probed():
    subject = own_model()
    assert with_batches(subject, None, print) is subject


@pytest.mark.parametrize(
    ("most", "allowed", "rows"),
    [
        (100, 10_000, 16),  # a row costs the same from 8 on
        (6, 10_000, 6),
        (100, 450, 4),
        (100, 99, 0),
        (1, 10_000, 1),
    ],
)
def test_rows_that_fit(most, allowed, rows):
    net = Net()
    card, calls = PlayedCard(net), []

    def work(size):
        calls.append(size)
        with torch.no_grad():
            net(torch.zeros(size, 1), None)

    chosen = rows_that_fit(work, most, allowed, card)
    assert chosen == (8 if rows == 16 else rows)
    # Nothing is tried of which two smaller sizes tell that it does not fit.
    assert card.each * max(calls) <= max(allowed, card.each)


def test_full_memory_is_a_size_that_does_not_fit():
    net = Net()

    def work(size):
        if size > 4:
            raise torch.OutOfMemoryError("full")
        net(torch.zeros(size, 1), None)

    assert rows_that_fit(work, 64, 1e9, PlayedCard(net)) == 4
    with pytest.raises(ValueError, match="other"):
        rows_that_fit(lambda size: int("other"), 64, 1e9, PlayedCard(net))


@pytest.mark.parametrize(
    ("free", "options", "sampled", "trained"),
    [
        # 35 % of it hold 8 samples without gradients at most, by time; 50 % a whole batch of 8 with them.
        (20_000, {}, 8, 8),
        # 24 samples of a round in batches of one size, 6 of which fit: 4, as sizes are doubled.
        (1_800, {}, 4, 1),
        (3_000, {"prompts": 5}, 7, 1),
        (20_000, {"prompts": 1}, 4, 8),
        # Not one row: the run itself says so.
        (50, {}, 1, 1),
    ],
)
def test_of_a_model_of_ones_own(free, options, sampled, trained):
    subject, _, lines = probed(own_model(**options), free=free)
    assert subject.config.sample.batch_size == sampled and subject.config.train.micro_batch == trained
    assert lines == [f"memory = 'auto', 0.0 GB: at once {sampled} samples drawn; {trained} rows trained on"]


def test_what_is_given_is_kept():
    subject, card, lines = probed(own_model(sample_batch=3, micro_batch=2))
    assert (subject.config.sample.batch_size, subject.config.train.micro_batch) == (3, 2)
    assert card.probes == 0 and lines == []


def test_fixed():
    subject = own_model(memory="fixed")
    assert with_batches(subject, None, print) is subject


def test_a_run_keeps_what_was_found_on_its_card(tmp_path):
    first, card, _ = probed(own_model(), tmp_path)
    assert card.probes and json.loads((tmp_path / MEMORY).read_text())["sampling"] == 8
    again, card, lines = probed(own_model(), tmp_path, free=500)
    assert again.config == first.config and card.probes == 0 and len(lines) == 1
    # Other settings, other sizes.
    other, card, _ = probed(own_model(candidates=2), tmp_path, free=500)
    assert card.probes and other.config.sample.batch_size == 1


def test_training_leaves_the_model_as_it_was():
    net = Net()
    before = net.weight.detach().clone()
    probed(own_model(net))
    assert torch.equal(net.weight, before) and net.weight.grad is None


def pipeline(pipe=None, **options):
    config = {"prompts": 2, "candidates": 4, "steps": 4, "keep": 1, "batch_size": 8, "guidance": 3.0} | options
    config["lora"] = pf.Lora(rank=2)
    settings = pf.PGraftConfig(**config).settings()

    def scored(finish, rate):
        reward = weighted(brightness, settings.policy, print, lambda score: of_media(score, finish.medium, rate))
        return Scored(reward, finish.decoded, {})

    parts = PipelineParts(
        build("sd") if pipe is None else pipe,
        RunPrompts.of(["a red cube", "a dog"], ["two cats"], 0),
        scored,
        {"height": 16, "width": 16},
    )
    return pipeline_subject(parts, settings, print)


@pytest.mark.parametrize(
    ("free", "sampled", "trained", "checkpointing", "decoded"),
    [(60, 4, 8, False, 4), (6, 4, 8, True, 4), (1.4, 2, 2, True, 2)],
)
def test_of_a_pipeline(free, sampled, trained, checkpointing, decoded):
    """Guided, 4 samples are 8 rows, from which on a row costs the same."""
    subject = pipeline()
    net = subject.task.model.facts.pipe.unet
    subject, _, lines = probed(subject, each=100_000, free=1e6 * free)
    config = subject.config
    assert (config.sample.batch_size, config.train.micro_batch) == (sampled, trained)
    assert config.train.checkpointing is checkpointing is net.is_gradient_checkpointing
    assert subject.decoder.at_once == decoded
    assert ("with checkpointing" in lines[0]) is checkpointing and lines[0].endswith(f"{decoded} decoded")
    subject.close()
    assert not net.is_gradient_checkpointing


def test_a_pipeline_that_recomputes_already():
    """Where memory suffices it does not in the run, and does again afterwards."""
    pipe = build("sd")
    pipe.unet.enable_gradient_checkpointing()
    subject, _, _ = probed(pipeline(pipe), each=100_000, free=60e6)
    assert not subject.config.train.checkpointing and not pipe.unet.is_gradient_checkpointing
    subject.close()
    assert pipe.unet.is_gradient_checkpointing


def test_a_run_that_fails_in_the_probe_leaves_the_pipeline_as_it_was(tmp_path, monkeypatch):
    pipe = build("sd")
    names = [name for name, _ in pipe.unet.named_parameters()]

    def failing(subject, run, log):
        subject.checkpoint(True)
        raise InputError("no")

    monkeypatch.setattr(runs, "with_batches", failing)
    config = pf.PGraftConfig(steps=3, candidates=2, keep=1, prompts=1, evaluate=2, run=str(tmp_path / "run"))
    with pytest.raises(InputError, match="no"):
        pf.PGraftTrainer(pipe, lambda media, prompts: [0.0] * len(media), ["a", "b"], config,
                         call={"height": 16, "width": 16}, log=lambda line: None).train()  # fmt: skip
    assert [name for name, _ in pipe.unet.named_parameters()] == names
    assert not pipe.unet.is_gradient_checkpointing


def test_checkpointing_that_is_given_is_kept():
    subject, _, _ = probed(pipeline(checkpointing=True), each=100_000, free=60e6)
    assert subject.config.train.checkpointing and subject.task.model.facts.pipe.unet.is_gradient_checkpointing
    subject.close()
    subject, _, _ = probed(pipeline(checkpointing=False), each=100_000, free=6e6)
    assert not subject.config.train.checkpointing and subject.config.train.micro_batch == 2
    subject.close()


def test_the_config_of_an_earlier_run_is_read():
    data = {"run": "a", "memory": None, "model": {"shipped": "sd"}, "rewards": [{"kind": "jpeg_size"}]}
    assert PipelineConfig.model_validate(data).memory is None
