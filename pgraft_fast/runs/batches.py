"""How much of a run is computed at once: memory = "auto".

On CUDA a probe of the card finds what the config leaves out: trajectories drawn at once, rows trained on at once and
whether activations are recomputed, samples decoded at once. What samples may take a share of the free memory, which its
CUDA graphs keep; training and decoding, one after the other, another. Results do not depend on it but for rounding; a
run keeps what was found for it, so that it goes on bit for bit on the same card.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from pgraft_fast.errors import told_as_damage
from pgraft_fast.files import json_of, to_json, write_file
from pgraft_fast.finetune import Learner
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.identity import sha256_of
from pgraft_fast.finetune.trial import training_trial
from pgraft_fast.runs.one_call import OneCall
from pgraft_fast.runs.subject import Subject
from pgraft_fast.sampling import calls_of
from pgraft_fast.sampling.card import Card, rows_that_fit
from pgraft_fast.sampling.choice import device_name
from pgraft_fast.schema import Batch
from pgraft_fast.sizes import GB

MEMORY = "memory.json"
_OF_SAMPLING, _OF_TRAINING = 0.35, 0.5
# Of a trained weight: its gradient and two moments, in float32.
_BYTES_OF_A_WEIGHT = 12
_MOST, _MOST_DECODED = 1024, 32
# Fewer rows of a batch of training than these at once are paid for by recomputing.
_FEW_ROWS = 4


def with_batches(subject: Subject, run: Path | None, log: Callable[[str], None]) -> Subject:
    """The subject with batch sizes that fit. run: folder in which they are kept. log: told of a probe."""
    device = next(subject.task.model.parameters()).device
    if subject.config.memory != "auto" or device.type != "cuda":
        return subject
    return fitted(subject, Card(device), run, log)


def fitted(subject: Subject, card: Card, run: Path | None, log: Callable[[str], None]) -> Subject:
    """By a probe of the card, or as it was found for this run before."""
    config = subject.config
    path = None if run is None else run / MEMORY
    probe = _Probe(subject, card)
    if not probe.open:
        return subject
    identity = sha256_of([config.future(), probe.open, device_name(card.device), torch.__version__])
    record: dict[str, Any] = {}
    if path is not None and path.exists():
        with told_as_damage(path):
            record = _checked(json_of(path.read_bytes()))
    if record.get("identity") != identity:
        record = {"identity": identity, **probe.sizes()}
        if path is not None:
            write_file(path, to_json(record))
    log(_line(record))
    return _with(subject, record)


def _checked(record: Any) -> dict[str, Any]:
    """What an earlier process wrote. Raises ValueError, TypeError, KeyError."""
    size, keys = TypeAdapter(Batch | None), ("sampling", "training", "decoding")
    sizes = {key: size.validate_python(record[key]) for key in keys}
    checkpointing = TypeAdapter(bool | None).validate_python(record["checkpointing"])
    free = float(record["free_gb"])
    return {"identity": record["identity"], "free_gb": free, "checkpointing": checkpointing, **sizes}


def _line(record: dict[str, Any]) -> str:
    training = f"{record['training']} rows trained on" if record["training"] else ""
    parts = [
        f"{record['sampling']} samples drawn" if record["sampling"] else "",
        f"{training}, with checkpointing" if training and record["checkpointing"] else training,
        f"{record['decoding']} decoded" if record["decoding"] else "",
    ]
    return f"memory = 'auto', {record['free_gb']:.1f} GB: at once {'; '.join(filter(None, parts))}"


def _with(subject: Subject, record: dict[str, Any]) -> Subject:
    config, sample, train = subject.config, {}, {}
    if record["sampling"]:
        sample["batch_size"] = record["sampling"]
    if record["training"]:
        train["micro_batch"] = record["training"]
    if record["checkpointing"] is not None and subject.checkpoint is not None:
        subject.checkpoint(record["checkpointing"])
        train["checkpointing"] = record["checkpointing"]
    if record["decoding"] and subject.decoder is not None:
        subject.decoder.at_once = record["decoding"]
    config = config.model_copy(
        update={"sample": config.sample.model_copy(update=sample), "train": config.train.model_copy(update=train)}
    )
    return replace(subject, config=config)


class _Probe:
    """Of one subject. open: what the config says nothing of, and is not done row by row."""

    def __init__(self, subject: Subject, card: Card) -> None:
        self._subject, self._card, self._config = subject, card, subject.config
        sample, train = self._config.sample.model_fields_set, self._config.train.model_fields_set
        self.open: list[str] = []
        if not getattr(subject.task.model, "runs_as_it_is", False):
            if "batch_size" not in sample:
                self.open.append("sampling")
            if "micro_batch" not in train:
                self.open.append("training")
                if "checkpointing" not in train and subject.checkpoint is not None:
                    self.open.append("checkpointing")
        if subject.decoder is not None and subject.decoder.together:
            self.open.append("decoding")

    def sizes(self) -> dict[str, Any]:
        """Rows by what is done, None where it is not open."""
        task = self._subject.task
        self._eager = Execution("eager", self._card.device)
        self._learner = (
            Learner(task.model, self._config.train) if self._subject.learner is None else self._subject.learner
        )
        trained = sum(weight.numel() for group in self._learner.optimizer.param_groups for weight in group["params"])
        self._free = max(0.0, self._card.free() - _BYTES_OF_A_WEIGHT * trained)
        sampling = self._sampling()
        training, checkpointing = self._training()
        decoding = self._decoding(sampling or self._config.sample.batch_size)
        free_gb = round(self._free / GB, 1)
        return {
            "sampling": sampling, "training": training, "checkpointing": checkpointing, "decoding": decoding,
            "free_gb": free_gb,
        }  # fmt: skip

    def _sampling(self) -> int | None:
        sample = self._config.sample
        if "sampling" not in self.open:
            return None
        samples = None if sample.prompts is None else sample.prompts * sample.candidates
        most = _MOST if samples is None else min(samples, _MOST)

        @lru_cache(maxsize=1)
        def call_of(rows: int) -> Callable[[], object]:
            return OneCall(self._subject, self._card.device, rows).of("eager")

        rows = rows_that_fit(lambda rows: call_of(rows)(), most, _OF_SAMPLING * self._free, self._card)
        rows = max(1, rows)
        if samples is None:
            return rows
        # Batches of one size: a graph of each would be captured.
        batches = max(-(-samples // rows), 2 if sample.overlap and samples > 1 else 1)
        return -(-samples // batches)

    def _training(self) -> tuple[int | None, bool | None]:
        train, checkpoint = self._config.train, self._subject.checkpoint
        if "training" not in self.open:
            return None, None
        # DDPO trains on both sides of the guidance.
        sides = calls_of(self._subject.task.model) if self._config.method == "ddpo" else 1
        if "checkpointing" not in self.open or checkpoint is None:
            return max(1, self._rows_in_training() // sides), None
        checkpoint(False)
        rows, checkpointing = self._rows_in_training(), False
        if rows < min(train.batch_size, sides * _FEW_ROWS):
            checkpoint(True)
            with_less = self._rows_in_training()
            rows, checkpointing = max(rows, with_less), with_less > rows
        return max(1, rows // sides), checkpointing

    def _rows_in_training(self) -> int:
        task, train = self._subject.task, self._config.train
        x_0 = torch.randn(train.batch_size, *task.shape, device=self._card.device)

        def learn(rows: int) -> object:
            with training_trial(
                task.model, task.schedule, train, x_0, task.prompts, steps=1, batch_size=rows,
                parameterization=task.parameterization, run=self._eager, learner=self._learner,
            ) as step:  # fmt: skip
                return step()

        return rows_that_fit(learn, train.batch_size, _OF_TRAINING * self._free, self._card, while_cheaper=False)

    def _decoding(self, most: int) -> int | None:
        decoder, task = self._subject.decoder, self._subject.task
        if decoder is None or "decoding" not in self.open:
            return None
        before = decoder.at_once

        def decode(rows: int) -> object:
            decoder.at_once = rows
            return decoder.media(torch.randn(rows, *task.shape, device=self._card.device))

        try:
            rows = rows_that_fit(decode, min(most, _MOST_DECODED), _OF_TRAINING * self._free, self._card)
        finally:
            decoder.at_once = before
        return max(1, rows)
