"""How the models of a run are called, where the config leaves it open: by a trial of one call.

On a CPU, and where a pipeline runs in its own loop, as they are. On CUDA a call of the reference at the batch of
sampling is timed as it is and in a CUDA graph; and compiled, where the run that is planned is so long that a tenth of
it would pay for the compiler. Networks of sets that can do without padding (`attention`) are called so, too. What does
not answer alike is left out. A run calls what was the fastest. Where that is graphs or compiled, a few steps of
training are timed as they are and as graphs, too. Channels-last weights are not tried: a UNet of Stable Diffusion 2's
size took 1.15 times as long with them on an H200, and compiled the same.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pgraft_fast.errors import is_out_of_memory
from pgraft_fast.finetune import Learner
from pgraft_fast.finetune.cost import evaluations_of
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.trial import training_trial
from pgraft_fast.runs.one_call import OneCall
from pgraft_fast.runs.subject import Subject
from pgraft_fast.sampling import calls_of
from pgraft_fast.sampling.choice import choose, model_name
from pgraft_fast.sampling.rounding import allowed_for
from pgraft_fast.sampling.timing import timed

# Of a network of real size; and what it saves at the least, where it is worth the wait.
_COMPILE_SECONDS, _LEAST_SAVED = 120.0, 0.1
_TRIED_STEPS = 4
# By the mode of sampling: the one that trains by graphs, too.
_WITH_TRAINING = {"graph_sampling": "graph", "compile_sampling": "compile_graph"}


def with_mode(subject: Subject, log: Callable[[str], None]) -> Subject:
    """The subject with a mode that is chosen. log: told of a trial."""
    if subject.config.mode != "auto":
        return subject
    device = next(subject.task.model.parameters()).device
    tried = device.type == "cuda" and not getattr(subject.task.model, "runs_as_it_is", False)
    mode = fastest(subject, device, log) if tried else "eager"
    return replace(subject, config=subject.config.model_copy(update={"mode": mode}))


def fastest(subject: Subject, device: torch.device, log: Callable[[str], None]) -> str:
    """By the trial; its answer is kept for runs of the same model and batch."""
    task = subject.task
    call = OneCall(subject, device)
    ways: dict[str, Callable[[], object]] = {"eager": call.of("eager")}
    if getattr(task.model, "can_be_captured", True):
        ways["graph_sampling"] = call.of("graph_sampling")
    if getattr(task.model, "attention", None) == "padded":
        ways["packed"] = partial(_packed, task.model, ways["eager"])
    try:
        ways["eager"]()
        seconds = timed(ways["eager"], device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # The batch will be halved, and what is the fastest for this one says nothing.
        return "eager"
    if _LEAST_SAVED * planned_seconds(subject, seconds, call.rows) > _COMPILE_SECONDS:
        ways["compile_sampling"] = call.of("compile_sampling")
    what = (
        f"{model_name(getattr(task.model, 'net', task.model), device)}, {call.rows} states {tuple(task.shape)}, "
        f"sampling, of {', '.join(ways)}, torch {torch.__version__}"
    )
    mode = choose(what, ways, device, allowed=allowed_for(next(task.model.parameters()).dtype, device))
    if mode in _WITH_TRAINING and _trains_as_graphs(subject):
        with _training_of(subject, device, (mode, _WITH_TRAINING[mode])) as steps:
            mode = choose(f"{what}; training {subject.config.train.batch_size} rows", steps, device)
            ways |= steps
    log(f"mode = {mode!r}, the fastest of {', '.join(ways)}")
    if mode == "packed":
        task.model.attention = mode  # type: ignore[assignment]
        return "eager"
    return mode


def _packed(model: Any, call: Callable[[], object]) -> object:
    """A call with the rows of all samples one behind the other, which no graph can hold."""
    before, model.attention = model.attention, "packed"
    try:
        return call()
    finally:
        model.attention = before


def _trains_as_graphs(subject: Subject) -> bool:
    """Whether its steps can be captured."""
    config, learner = subject.config, subject.learner
    whole = config.train.micro_batch is None or config.train.micro_batch >= config.train.batch_size
    return whole and config.method in ("pgraft", "graft") and (learner is None or learner.can_be_captured)


@contextmanager
def _training_of(
    subject: Subject, device: torch.device, modes: tuple[str, ...]
) -> Iterator[dict[str, Callable[[], object]]]:
    """A few steps, by mode."""
    task, train = subject.task, subject.config.train
    learner = Learner(task.model, train) if subject.learner is None else subject.learner
    x_0 = torch.randn(train.batch_size, *task.shape, device=device)
    with ExitStack() as lent:
        yield {
            mode: lent.enter_context(
                training_trial(
                    task.model, task.schedule, train, x_0, task.prompts, steps=_TRIED_STEPS,
                    batch_size=train.batch_size, parameterization=task.parameterization,
                    run=Execution(mode, device), learner=learner,
                )
            )
            for mode in modes
        }  # fmt: skip


def planned_seconds(subject: Subject, call_seconds: float, rows: int) -> float:
    """Of sampling in the run, where a call of so many rows takes this long: its budget, or what its rounds ask for."""
    task, config = subject.task, subject.config
    seconds, sample = config.budget.seconds(), config.sample
    if seconds is not None:
        return float(seconds)
    each = evaluations_of(task.schedule, config, task.parameterization)
    if sample.prompts is None:
        calls = (config.budget.model_calls or 0) / (rows * calls_of(task.model))
    else:
        calls = config.train.rounds * sample.prompts * sample.candidates * each / rows
    return float(calls * call_seconds)
