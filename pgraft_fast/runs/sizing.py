"""How many prompts a round samples, where the config leaves it to the budget."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pgraft_fast.errors import InputError, told_as_damage
from pgraft_fast.files import json_of, to_json, write_file
from pgraft_fast.finetune.cost import evaluations_of, probe
from pgraft_fast.finetune.identity import sha256_of
from pgraft_fast.runs.subject import Subject
from pgraft_fast.sampling import calls_of
from pgraft_fast.schema import Count
from pgraft_fast.tasks.evaluation import whole_groups

PLAN = "plan.json"
# What `commands.finetune` keeps back for the evaluation at the end, beside what the one at the start took.
SAFETY = 1.3
_MOST = 1 << 20


def sized(subject: Subject, run: Path, log: Callable[[str], None], ranks: int = 1) -> Subject:
    """The subject with `sample.prompts` set: as many as make the rounds fill the budget, found once for a run. ranks:
    that share the work.

    Raises InputError where there is no budget to fill, or not one prompt a round fits.
    """
    if subject.config.sample.prompts is not None:
        return subject
    path, config = run / PLAN, subject.config
    identity = sha256_of([config.future(), config.budget.model_dump(), config.train.rounds])
    with told_as_damage(path):
        plan = dict(json_of(path.read_bytes())) if path.exists() else {}
    # Rounds that are done were of this size, whatever the budget is now. "asked": in plans of earlier versions.
    if plan and (plan.get("identity", plan.get("asked")) == identity or any((run / "checkpoints").glob("round-*"))):
        with told_as_damage(path):
            prompts = TypeAdapter(Count).validate_python(plan["prompts"])
    else:
        prompts = prompts_that_fit(subject, ranks)
        write_file(path, to_json({"prompts": prompts, "identity": identity}))
    log(f"{prompts} prompts a round fill the budget")
    return replace(subject, config=with_prompts(subject.config, prompts))


def with_prompts(config: Any, prompts: int) -> Any:
    """The config with this many prompts a round."""
    return config.model_copy(update={"sample": config.sample.model_copy(update={"prompts": prompts})})


def prompts_that_fit(subject: Subject, ranks: int = 1) -> int:
    """The most prompts a round with which all rounds fit into the budget."""
    config = subject.config
    seconds, calls = config.budget.seconds(ranks), config.budget.model_calls
    if seconds is None and calls is None:
        raise InputError("sample.prompts is missing: give it, or a [budget] in time or model_calls to fill")
    task = subject.task
    evaluations = evaluations_of(task.schedule, config, task.parameterization)
    fits: list[Callable[[Any], bool]] = []
    if calls is not None:
        each = calls_of(task.model)
        fits.append(lambda trial: trial.run_calls(evaluations, each) <= calls)
    if seconds is not None:
        # As many as fill a batch, or the cost of a batch would be guessed from that of a few samples.
        cost = probe_of(subject, with_prompts(config, -(-config.sample.batch_size // config.sample.candidates)))
        evaluation = cost.evaluation(config, evaluation_samples(config), evaluations)
        left = seconds - (1.0 + SAFETY) * evaluation
        fits.append(lambda trial: SAFETY * config.train.rounds * cost.round(trial, evaluations).seconds <= left)
    prompts = _largest(lambda number: all(test(with_prompts(config, number)) for test in fits))
    if prompts == 0:
        raise InputError("budget: not one prompt a round fits; raise [budget] or lower [sample] and [train]")
    return prompts


def evaluation_samples(config: Any) -> int:
    """Samples of one evaluation."""
    return whole_groups(config.evaluate.samples, config.sample.candidates)


def probe_of(subject: Subject, config: Any) -> Any:
    """A timed probe of the subject's model and reward."""
    task = subject.task
    return probe(
        task.model, task.schedule, subject.reward, config, shape=task.shape, parameterization=task.parameterization,
        prompts=task.prompts, learner=subject.learner,
    )  # fmt: skip


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, of those up to the first that does not; 0 for none."""
    if not fits(1):
        return 0
    low = 1
    while low < _MOST and fits(2 * low):
        low *= 2
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
