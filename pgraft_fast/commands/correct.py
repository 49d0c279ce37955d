"""`pgraft-fast correct`: train the base, invert the data, fit the correctors, evaluate; each stage can be asked for
alone.

run/config.json, run/base/ (checkpoints), run/base.safetensors, run/inverse/ (shards), run/fit-<kind>/ (checkpoints),
run/corrector-<kind>/, run/result.json, run/report/. The same command again goes on where a stopped one was.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pgraft_fast.amounts import duration
from pgraft_fast.commands.correct_config import CorrectConfig, read_correct_config
from pgraft_fast.commands.devices import device_of
from pgraft_fast.diagnostics import inception_features
from pgraft_fast.errors import CheckpointError, InputError, StoppedError, told_as_damage
from pgraft_fast.files import json_of, to_json, write_file
from pgraft_fast.finetune.checkpoint import tensor_bytes, tensors_from_bytes
from pgraft_fast.finetune.identity import check_same, lasting
from pgraft_fast.finetune.signals import StopRequest
from pgraft_fast.inverse_noise import (
    Interpolant,
    InverseNoise,
    NoiseCorrector,
    NoiseDiagnosis,
    diagnose,
    fit_field,
    invert_shards,
    open_shards,
)
from pgraft_fast.inverse_noise.networks import default_field, make_field
from pgraft_fast.inverse_noise.shards import read_plan
from pgraft_fast.ranks.ranks import Ranks
from pgraft_fast.report.correct_report import write_correct_report
from pgraft_fast.runs.terminal import Terminal
from pgraft_fast.runs.together import at_work
from pgraft_fast.tasks.digits.dequantised import digits_flow_task
from pgraft_fast.tasks.flow import FlowTask
from pgraft_fast.tasks.flow_evaluation import FlowEvaluation, evaluate_flow
from pgraft_fast.tasks.pictures import Pictures, thumbnail_features, to_pictures

# Numbers of inverse noise that the diagnosis takes at once, in float64.
_TESTED = 1 << 27

STAGES = ("train-base", "invert", "fit-corrector", "evaluate")


def correct(config: CorrectConfig, terminal: Terminal, stages: tuple[str, ...] = STAGES) -> dict[str, Any]:
    """Run the stages; what the last one found. Raises InputError where a stage before is missing."""
    run = Path(config.run)
    with at_work(run, terminal) as (ranks, stop):
        return _Correct(config, run, terminal, stop, ranks).do(stages)


def correct_file(config: Path, run: str | None, stages: tuple[str, ...]) -> dict[str, Any]:
    """As a TOML file says. run: its folder, in place of the config's."""
    try:
        return correct(read_correct_config(config, {"run": run}), Terminal(), stages)
    except StoppedError as error:
        raise StoppedError(f"{error}; what is finished is safe, the same command goes on from there") from error


def load_flow_task(config: CorrectConfig) -> FlowTask:
    """The data and networks of a config."""
    task = _task(config)
    if config.evaluate.inception is None:
        return task
    features, name = inception_features(Path(config.evaluate.inception))
    return replace(task, features=features, feature_name=name)


def _task(config: CorrectConfig) -> FlowTask:
    data = config.data
    if data.kind == "digits":
        task = digits_flow_task(config.seed)
        return task if data.shipped_base else replace(task, base=None)
    assert data.folder is not None
    pictures = Pictures.of(Path(data.folder), data.size, grey=data.grey, sigma=data.noise, seed=config.seed)
    network = config.base.network
    return FlowTask(
        name=Path(data.folder).name,
        shape=pictures.shape,
        source=pictures,
        draw=pictures.draw,
        network=default_field(pictures.shape) if network is None else network.config(),
        base=None,
        features=thumbnail_features,
        feature_name="pictures in 8 x 8 areas",
        pictures=to_pictures,
        data=pictures.at(torch.arange(len(pictures))) if len(pictures) <= 5000 else None,
        identity=pictures.identity(),
    )


class _Correct:
    def __init__(self, config: CorrectConfig, run: Path, terminal: Terminal, stop: StopRequest, ranks: Ranks) -> None:
        self.config, self.run, self.terminal, self.stop, self.ranks = config, run, terminal, stop, ranks
        with ranks.together():
            self.device = device_of(config.device)
            self.task = load_flow_task(config)
        self.seconds: dict[str, float] = {}

    def do(self, stages: tuple[str, ...]) -> dict[str, Any]:
        self.ranks.once(lambda: write_file(self.run / "config.json", to_json(self.config.model_dump())))
        work: dict[str, Callable[[], dict[str, Any]]] = {
            "train-base": self.train_base, "invert": self.invert, "fit-corrector": self.fit, "evaluate": self.evaluate,
        }  # fmt: skip
        result: dict[str, Any] = {}
        for stage in STAGES:
            if stage in stages:
                began = time.perf_counter()
                result = work[stage]()
                self.seconds[stage] = round(time.perf_counter() - began, 3)
                self.terminal.line(f"{stage}: {duration(self.seconds[stage])}")
        return {"run": str(self.run), **result}

    def train_base(self) -> dict[str, Any]:
        """Nothing to do for digits, whose base is shipped."""
        path, base = self.run / "base.safetensors", self.task.base
        if base is None:
            training = self.config.base
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed)
                network = make_field(self.task.shape, self.task.network).to(self.device)
            base = fit_field(
                network, self.task.source, Interpolant("linear"), training.fit(self.config.seed),
                folder=self.run / "base", identity=self._base_identity(),
                log=self.terminal.line, check=self.stop.check, ranks=self.ranks,
            ).network  # fmt: skip
        data = tensor_bytes(base.state_dict(), json.dumps({"identity": self._base_identity()}))
        self.ranks.once(lambda: write_file(path, data))
        count = sum(weight.numel() for weight in base.parameters())
        return {"base": str(path), "weights": count}

    def invert(self) -> dict[str, Any]:
        """Push the data back through the base."""
        settings = self.config.invert
        with self.ranks.together():
            base, plan = self._base(), self._plan()

        def on_shard(done: int) -> None:
            self.terminal.advance(done, f"inverted {done} of {settings.samples}")
            self.terminal.line(f"inverted {done} of {settings.samples}")

        with self.terminal.progress(settings.samples):
            inverse = invert_shards(
                base, lambda index: self.task.draw(index, self.config.seed).to(self.device), settings.samples,
                self.run / "inverse", shard=settings.shard, identity=plan["of"], log=self.terminal.line,
                check=self.stop.check, on_shard=on_shard, batch_size=settings.shard, ranks=self.ranks, **plan["how"],
            )  # fmt: skip
        if inverse.failed == inverse.total:
            raise InputError(
                f"none of {inverse.total} samples inverted (contraction {inverse.contraction:.2f}): raise "
                "generator.steps, data.noise or base.steps, and take another run folder"
            )
        summary = self.ranks.from_first(lambda: self._summary(inverse, diagnose(self._some_noise(inverse))))
        self.terminal.line(summary["diagnosis"])
        return summary

    def fit(self) -> dict[str, Any]:
        """One corrector an interpolant."""
        settings = self.config.corrector
        with self.ranks.together():
            inverse = self._inverse()
            noise = inverse.source()
        network = None if settings.network is None else settings.network.config()
        for kind in settings.interpolants:
            corrector = NoiseCorrector.fit(
                noise, device=self.device, interpolant=kind, steps=settings.integration_steps,
                base_steps=self.config.generator.steps, network=network, settings=settings.fit(self.config.seed),
                folder=self.run / f"fit-{kind}", identity={"base_sha256": self._hash()},
                log=self.terminal.line, check=self.stop.check, ranks=self.ranks,
            )  # fmt: skip
            corrector.summary["identity"] = self._corrector_identity(inverse)
            self.ranks.once(partial(corrector.save, self.run / f"corrector-{kind}"))
        return {"correctors": [str(self.run / f"corrector-{kind}") for kind in settings.interpolants]}

    def evaluate(self) -> dict[str, Any]:
        """Distances of base and corrected samples, and the report."""
        settings = self.config.evaluate
        with self.ranks.together():
            inverse, base = self._inverse(), self._base()
            correctors = {str(kind): self._corrector(kind, inverse) for kind in self.config.corrector.interpolants}
        evaluation = evaluate_flow(
            self.task, base, correctors, samples=settings.samples, base_steps=settings.base_steps,
            splits=[(pair[0], pair[1]) for pair in settings.splits], solver=self.config.generator.solver,
            seed=self.config.seed, batch_size=settings.batch_size, check=self.stop.check,
            ranks=self.ranks,
        )  # fmt: skip
        return self.ranks.from_first(lambda: self._reported(evaluation, inverse))

    def _reported(self, evaluation: FlowEvaluation, inverse: InverseNoise) -> dict[str, Any]:
        diagnosis = diagnose(self._some_noise(inverse))
        result = {
            "rows": evaluation.rows, "floor": evaluation.floor, "features": self.task.feature_name,
            "inversion": self._summary(inverse, diagnosis),
            "seconds": self.seconds, "config": self.config.model_dump(), "torch": torch.__version__,
        }  # fmt: skip
        write_file(self.run / "result.json", to_json(result))
        page = write_correct_report(self.run, self.task, evaluation, diagnosis, result)
        self.terminal.line(f"report: {page}")
        return result

    def _summary(self, inverse: InverseNoise, diagnosis: NoiseDiagnosis) -> dict[str, Any]:
        return {
            "samples": inverse.total, "failed": inverse.failed,
            "calls_per_sample": round(inverse.calls / inverse.total, 2),
            "contraction": round(inverse.contraction, 4), "worst_round_trip": inverse.worst_round_trip,
            "diagnosis": diagnosis.summary(),
        }  # fmt: skip

    def _some_noise(self, inverse: InverseNoise) -> Tensor:
        """As much as is tested at once."""
        return inverse.noise(max(1000, _TESTED // self.task.data_size))

    def _base_identity(self) -> dict[str, Any]:
        """What the base is made of."""
        training = "shipped" if self.task.base is not None else lasting(asdict(self.config.base.fit(self.config.seed)))
        return {"network": self.task.network, "training": training, **self.task.identity}

    def _plan(self) -> dict[str, dict[str, Any]]:
        """What the inversion is of, and how it is done."""
        settings, generator = self.config.invert, self.config.generator
        return {
            "of": {"base_sha256": self._hash(), **self.task.identity, "seed": self.config.seed},
            "how": {
                "steps": generator.steps, "solver": generator.solver, "tolerance": settings.tolerance,
                "round_trip_limit": settings.round_trip_limit, "max_iterations": settings.max_iterations,
            },
        }  # fmt: skip

    def _corrector_identity(self, inverse: InverseNoise) -> dict[str, Any]:
        """What a corrector is made of."""
        settings = self.config.corrector
        return {
            "base_sha256": self._hash(), "inverse_sha256": inverse.sha256(), "base_steps": self.config.generator.steps,
            "integration_steps": settings.integration_steps,
            "training": lasting(asdict(settings.fit(self.config.seed))),
            "network": None if settings.network is None else settings.network.config(),
        }  # fmt: skip

    def _base(self) -> nn.Module:
        path = self.run / "base.safetensors"
        self._bytes()
        with told_as_damage(path), safe_open(path, "pt") as file:
            saved = dict(json_of((file.metadata() or {}).get("pgraft_fast", "{}")).get("identity", {}))
        check_same(saved, json_of(to_json(self._base_identity())), f"the base in {path}")
        base = make_field(self.task.shape, self.task.network)
        with told_as_damage(path):
            base.load_state_dict(tensors_from_bytes(self._bytes(), path))
        return base.requires_grad_(False).eval().to(self.device)

    def _hash(self) -> str:
        return hashlib.sha256(self._bytes()).hexdigest()

    def _bytes(self) -> bytes:
        path = self.run / "base.safetensors"
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{path}: no base ({error.strerror}); run `pgraft-fast train-base` with this config"
            ) from error

    def _inverse(self) -> InverseNoise:
        folder = self.run / "inverse"
        try:
            inverse, saved = open_shards(folder), read_plan(folder)
        except CheckpointError as error:
            raise InputError(f"{error}; run `pgraft-fast invert` with this config") from error
        plan, settings = self._plan(), self.config.invert
        now = json_of(to_json({"total": settings.samples, "shard": settings.shard, **plan["of"], **plan["how"]}))
        # Of the model and the first samples, which tell nothing more here.
        check_same({key: saved[key] for key in saved if key in now}, now, f"the inversion in {folder}")
        return inverse

    def _corrector(self, kind: str, inverse: InverseNoise) -> NoiseCorrector:
        folder = self.run / f"corrector-{kind}"
        try:
            corrector = NoiseCorrector.load(folder)
        except CheckpointError as error:
            raise InputError(f"{error}; run `pgraft-fast fit-corrector` with this config") from error
        now = json_of(to_json(self._corrector_identity(inverse)))
        check_same(corrector.summary.get("identity", {}), now, f"the corrector in {folder}")
        return corrector
