"""Fine-tuning of a diffusers pipeline in three lines of Python."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import Tensor, nn

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import Prompts
from pgraft_fast.runs.model_run import model_settings, model_subject
from pgraft_fast.runs.pipeline_run import PipelineParts, Scored, pipeline_subject
from pgraft_fast.runs.pipeline_settings import PGraftConfig, PipelineRunSettings
from pgraft_fast.runs.prompts import RunPrompts
from pgraft_fast.runs.rewards import Rewards, reward_codes, weighted
from pgraft_fast.runs.run import OnRound, finish_run
from pgraft_fast.runs.subject import Subject
from pgraft_fast.runs.terminal import Terminal
from pgraft_fast.tasks.pipeline import Finish, of_media


@dataclass(frozen=True)
class Measured:
    """reward: mean over held-out prompts, with its 95 % interval [low, high]."""

    reward: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Round:
    """Of the history: mean reward of the candidates, of those accepted, how many these are, loss of the training."""

    reward: float
    reward_accepted: float
    accepted: int
    loss: float
    model_calls: int
    seconds: float


@dataclass(frozen=True)
class Result:
    """adapter: file of the LoRA, which `load_adapter` takes, or of all weights where its rank is 0. report: of HTML.

    before, after: rewards of the reference and of the tuned model at the same seeds. cut: share of the steps that the
    reference makes. gpu_hours: from start to exit, on every device.
    """

    adapter: Path
    report: Path
    before: Measured
    after: Measured
    history: tuple[Round, ...]
    cut: float
    model_calls: int
    gpu_hours: float
    run: Path


class PGraftTrainer:
    """Fine-tune a diffusers pipeline towards a reward.

        trainer = PGraftTrainer(pipe, reward=score, prompts=["a red circle", ...], config=PGraftConfig(
            cut=0.25, guidance=5.0, budget=Budget(gpu_hours=2.0), run="runs/red"))
        result = trainer.train()
        load_adapter(pipe, result.adapter)

    pipe: any pipeline with a denoising loop and a scheduler; it is called as it is, nothing of it is written again, and
    it is left as it was. reward: score(media, prompts) -> one number a sample, media being a list of what the pipeline
    returns: pictures (H, W, 3) uint8, videos (F, H, W, 3) uint8, audio (channels, samples) float32; or a reward of
    this package, "file.py:function", or a list of these, alone or as pairs with a weight. prompts: texts, class
    numbers, or {"prompt": text, argument: value} where other arguments of the call differ from prompt to prompt.
    held_out: prompts to measure on, default a drawn tenth. call: other arguments of the pipeline's call, equal
    for all prompts. on_round(number, entry): after each round. The same call again goes on with a run that was stopped.
    Raises InputError, one line, which says what is wrong with which argument, or why the pipeline cannot be tuned.
    """

    config: PGraftConfig
    _settings: PipelineRunSettings
    _subject: Callable[[], Subject]

    def __init__(
        self,
        pipe: Any,
        reward: Rewards,
        prompts: Sequence[Any],
        config: PGraftConfig | None = None,
        *,
        held_out: Sequence[Any] | None = None,
        call: Mapping[str, Any] | None = None,
        log: Callable[[str], None] | None = None,
        on_round: OnRound = lambda number, entry: None,
    ) -> None:
        for name in ("scheduler", "components"):
            if not hasattr(pipe, name):
                raise InputError(f"pipe: {type(pipe).__name__} is no pipeline of diffusers, it has no {name}")
        self._begin(config, PGraftConfig.settings, log, on_round)

        def scored(finish: Finish, rate: float | None) -> Scored:
            parts = weighted(
                reward, self._settings.policy, self._terminal.line, lambda score: of_media(score, finish.medium, rate)
            )
            return Scored(parts, finish.decoded, reward_codes(reward))

        def subject() -> Subject:
            run_prompts = RunPrompts.of(prompts, held_out, self._settings.seed)
            parts = PipelineParts(pipe, run_prompts, scored, dict(call or {}))
            return pipeline_subject(parts, self._settings, self._terminal.line)

        self._subject = subject

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        schedule: Schedule,
        reward: Rewards,
        prompts: Prompts | Sequence[str] | None = None,
        config: PGraftConfig | None = None,
        *,
        shape: Sequence[int],
        parameterization: str = "epsilon",
        held_out: Prompts | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        pictures: Callable[[Tensor], np.ndarray] | None = None,
        log: Callable[[str], None] | None = None,
        on_round: OnRound = lambda number, entry: None,
    ) -> "PGraftTrainer":
        """The same for a model of one's own, model(x, t) or model(x, t, condition): all weights of a copy are trained.

            trainer = PGraftTrainer.from_model(model, Schedule.vp_linear(), score, config=config, shape=(3, 32, 32))
            result = trainer.train()
            tuned.load_state_dict(safetensors.torch.load_file(result.adapter))    # above result.cut

        schedule, parameterization, shape: see `rollout`. reward: score(samples, prompts) -> one number a sample of
        (B, *shape). prompts: texts that the reward gets, with a condition for each where the model takes one (see
        `Prompts`); default one empty text. held_out: to measure on, default the same. features(samples) -> (n, d):
        space of the distances in the report, default the values themselves. pictures(samples) -> (n, H, W) or
        (n, H, W, 3) uint8 for the report, default the values as they are. config: without lora and guidance.
        """
        trainer = cls.__new__(cls)
        trainer._begin(config, model_settings, log, on_round)
        trainer._subject = lambda: model_subject(
            model, schedule, reward, prompts, trainer._settings, shape=shape, parameterization=parameterization,
            held_out=held_out, features=features, pictures=pictures, log=trainer._terminal.line,
        )  # fmt: skip
        return trainer

    def _begin(
        self, config: PGraftConfig | None, settings_of: Callable[[PGraftConfig], PipelineRunSettings],
        log: Callable[[str], None] | None, on_round: OnRound,
    ) -> None:  # fmt: skip
        self.config = PGraftConfig() if config is None else config
        try:
            self._settings = settings_of(self.config)
        except ValidationError as error:
            raise InputError("config: " + "; ".join(item["msg"] for item in error.errors())) from error
        self._terminal, self._on_round = Terminal(log), on_round

    def train(self) -> Result:
        """Run, or go on with a run, to its end."""
        run = Path(self.config.run)
        return _result(run, finish_run(run, self._subject, self._terminal, self._on_round))


def _result(run: Path, result: Mapping[str, Any]) -> Result:
    before, after = (Measured(result[name]["reward"], tuple(result[name]["reward_ci"])) for name in ("before", "after"))
    history = tuple(Round(**{key: entry[key] for key in Round.__annotations__}) for entry in result["rounds"])
    train = result["config"]["train"]
    return Result(
        adapter=Path(result["saved"]), report=run / "report" / "index.html", before=before, after=after,
        history=history, cut=0.0 if result["config"]["method"] != "pgraft" else float(train["cut"]),
        model_calls=result["spent"]["model_calls"], gpu_hours=result["spent"]["device_hours"], run=run,
    )  # fmt: skip
