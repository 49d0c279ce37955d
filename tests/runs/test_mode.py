"""How the models of a run are called: by a trial on CUDA, which is played on the CPU here."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from denoisers import TEXTS
from graph_caches import OtherCache, taped
from pipelines import build
from torch import nn

import pgraft_fast as pf
from pgraft_fast.finetune import Learner, Prompts
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.settings import Mode
from pgraft_fast.pipelines.calls import Calls
from pgraft_fast.pipelines.facts import facts_of
from pgraft_fast.runs import mode as modes
from pgraft_fast.runs import one_call
from pgraft_fast.runs.mode import fastest, planned_seconds, with_mode
from pgraft_fast.runs.model_run import model_settings, model_subject
from pgraft_fast.tasks.pipeline import pipeline_task

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Net(nn.Module):
    """Counts its calls, with the rows of each."""

    def __init__(self):
        super().__init__()
        self.weight, self.rows = nn.Parameter(torch.ones(())), []

    def forward(self, x, t, condition=None):
        self.rows.append(x.shape[0])
        return self.weight * x


def subject_of(net=None, condition=None, **options):
    config = {"prompts": 6, "candidates": 4, "steps": 5, "sample_batch": 16, "keep": 1} | options
    prompts = None if condition is None else Prompts(["a", "b"], condition=condition)
    return model_subject(
        Net() if net is None else net, pf.Schedule.vp_linear(), lambda samples, prompts: samples.flatten(1).mean(1),
        prompts, model_settings(pf.PGraftConfig(**config)), shape=(2, 3), parameterization="epsilon",
    )  # fmt: skip


@pytest.fixture
def tried_ways(monkeypatch):
    """The ways that a trial is given: {name: seconds}, in order; the first is taken."""
    seen = {}

    def choose(what, ways, device, allowed):
        for name, run in ways.items():
            run()
            seen[name] = what
        return next(iter(ways))

    monkeypatch.setattr(modes, "choose", choose)
    monkeypatch.setattr(modes, "Execution", Taped)
    monkeypatch.setattr(one_call, "Execution", Taped)
    return seen


class Taped(Execution):
    """Graphs on the CPU, and a compiler that changes nothing."""

    captures = True

    def __init__(self, mode, device):
        super().__init__("eager" if "graph" in mode else mode, device)
        cache = OtherCache(taped) if "graph" in mode and self.captures else None
        self.graphs = cache if mode.startswith("graph") else None
        self.training_graphs = cache if mode in ("graph", "compile_graph") else None
        self._compiles, self._twins = {False: False, True: False}, False


def test_on_a_cpu_nothing_is_tried():
    subject = subject_of()
    assert with_mode(subject, print).config.mode == "eager" and subject.task.model.rows == []


@pytest.mark.parametrize("mode", get_args(Mode)[1:])
def test_what_is_asked_for_is_not_changed(mode):
    subject = subject_of(mode=mode)
    assert with_mode(subject, print) is subject


@pytest.mark.parametrize("condition", [None, torch.arange(2)])
def test_a_short_run_is_not_compiled(tried_ways, condition):
    subject, lines = subject_of(condition=condition), []
    assert fastest(subject, CPU, lines.append) == "eager"
    assert list(tried_ways) == ["eager", "graph_sampling"] and set(subject.task.model.rows) == {16}
    assert lines == ["mode = 'eager', the fastest of eager, graph_sampling"]


@pytest.mark.parametrize(
    "sampling, best",
    [("graph_sampling", "graph_sampling"), ("graph_sampling", "graph"), ("compile_sampling", "compile_graph")],
)
def test_training_is_tried_as_graphs(tried_ways, monkeypatch, sampling, best):
    """On the learner that will be trained, which is as it was then."""
    questions = []

    def choose(what, ways, device, allowed=None):
        for run in ways.values():
            run()
            run()
        questions.append((what, list(ways)))
        return best if best in ways else sampling

    monkeypatch.setattr(modes, "choose", choose)
    subject, lines = subject_of(batch_size=6, budget=pf.Budget(gpu_hours=1.0)), []
    subject = replace(subject, learner=Learner(subject.task.model, subject.config.train))
    before = subject.learner.tensors()
    assert fastest(subject, CPU, lines.append) == best
    trained = {"graph_sampling": "graph", "compile_sampling": "compile_graph"}[sampling]
    tried = ["eager", "graph_sampling", "compile_sampling"]
    assert [ways for _, ways in questions] == [tried, [sampling, trained]]
    assert questions[1][0].endswith("training 6 rows")
    assert lines == [f"mode = '{best}', the fastest of {', '.join([*tried, trained])}"]
    after = subject.learner.tensors()
    for part in ("model", "ema"):
        assert all(torch.equal(after[part][name], value) for name, value in before[part].items())
    assert not subject.learner.optimizer.state and subject.learner.steps_done == 0


@pytest.mark.parametrize("options", [{"micro_batch": 2}, {"method": "ddpo", "cut": 0.0}])
def test_training_that_is_not_captured_is_not_tried(tried_ways, monkeypatch, options):
    monkeypatch.setattr(modes, "choose", lambda what, ways, device, allowed: list(ways)[1])
    monkeypatch.setattr(modes, "training_trial", None)
    assert fastest(subject_of(**options), CPU, print) == "graph_sampling"


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_way_that_answers_otherwise_is_left_out(monkeypatch, tmp_path, caplog, factor):
    """Whatever made a graph wrong, a run does not sample from it."""

    class Wrong(OtherCache):
        def run(self, key, function, inputs, *args, **kwargs):
            return [factor * value for value in function(list(inputs), [])]

    class WithWrongGraphs(Taped):
        def __init__(self, mode, device):
            super().__init__(mode, device)
            self.graphs = None if self.graphs is None else Wrong(taped)

    monkeypatch.setenv("PGRAFT_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(one_call, "Execution", WithWrongGraphs)
    assert fastest(subject_of(), CPU, print) == "eager"
    assert "graph_sampling is left out: its answer is off by" in caplog.text


def test_a_long_run_is_worth_a_compiler(tried_ways):
    fastest(subject_of(budget=pf.Budget(gpu_hours=1.0)), CPU, print)
    assert list(tried_ways) == ["eager", "graph_sampling", "compile_sampling"]
    tried_ways.clear()
    fastest(subject_of(budget=pf.Budget(wall_seconds=1100.0)), CPU, print)
    assert list(tried_ways) == ["eager", "graph_sampling"]


def test_a_batch_is_no_larger_than_a_round(tried_ways):
    subject = subject_of(prompts=2, sample_batch=64)
    fastest(subject, CPU, print)
    assert set(subject.task.model.rows) == {8}


def test_what_cannot_be_captured_is_not_tried_so(tried_ways):
    net = Net()
    net.can_be_captured = False
    fastest(subject_of(net), CPU, print)
    assert list(tried_ways) == ["eager"]


@pytest.mark.parametrize("best", ["eager", "packed"])
def test_sets_without_padding(tried_ways, monkeypatch, best):
    """The rows of real elements alone, in calls as they are; the answers are compared as those of all ways."""

    class Sets(Net):
        attention = "padded"

        def forward(self, x, t, condition=None):
            seen.append(self.attention)
            return super().forward(x, t, condition)

    def choose(what, ways, device, allowed):
        seen.clear()
        for run in ways.values():
            run()
        return best

    seen, net, lines = [], Sets(), []
    monkeypatch.setattr(modes, "choose", choose)
    assert fastest(subject_of(net), CPU, lines.append) == "eager"
    assert seen[0] == "padded" and seen[-1] == "packed" and seen.count("packed") == 1
    assert net.attention == ("packed" if best == "packed" else "padded")
    assert lines == [f"mode = '{best}', the fastest of eager, graph_sampling, packed"]


def test_a_batch_that_does_not_fit(tried_ways):
    net = Net()
    net.register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    assert fastest(subject_of(net), CPU, print) == "eager" and tried_ways == {}


def test_the_seconds_that_a_run_samples():
    # 3 rounds of 6 prompts, 4 candidates, 5 steps, in calls of 16 rows of half a second.
    assert planned_seconds(subject_of(rounds=3), 0.5, 16) == pytest.approx(3 * 24 * 5 / 16 * 0.5)
    assert planned_seconds(subject_of(rounds=3, budget=pf.Budget(gpu_hours=2.0)), 0.5, 16) == 7200.0
    filled = subject_of(prompts=None, budget=pf.Budget(model_calls=3200))
    assert planned_seconds(filled, 0.5, 16) == 100.0


def test_a_pipeline(tried_ways, monkeypatch):
    """The reference with its prompts, guided; on a CPU it reads times back, which a tape does not bear."""
    monkeypatch.setattr(Taped, "captures", False)
    base = subject_of()
    facts = facts_of(Calls(build("sd"), TEXTS, {"height": 16, "width": 16}, guidance=3.0))
    task, _ = pipeline_task(facts, TEXTS[:2], TEXTS[2:], pf.Lora(rank=2), 0)
    assert fastest(replace(base, task=task), CPU, print) == "eager"
    assert list(tried_ways) == ["eager", "graph_sampling"] and "UNet2DConditionModel" in tried_ways["graph_sampling"]


def test_execution_in_auto():
    """Where nobody has chosen: benchmarks and loops of one's own."""
    assert Execution("auto", CPU).graphs is None and Execution("eager", CUDA).graphs is None
    auto, whole = Execution("auto", CUDA), Execution("graph", CUDA)
    assert auto.graphs is not None and auto.training_graphs is None
    assert whole.training_graphs is whole.graphs is not None
    compiled = Execution("compile_graph", CUDA)
    assert compiled.graphs is None and compiled.training_graphs is not None


@pytest.mark.parametrize("mode, device", [("compile_sampling", CPU), ("compile_graph", CUDA)])
def test_only_what_samples_is_compiled(mode, device):
    run, net = Execution(mode, device), Net()
    assert hasattr(run.of(net), "_orig_mod") and not hasattr(run.of(net, trained=True), "_orig_mod")
    both = Execution("compile", CPU)
    assert hasattr(both.of(net), "_orig_mod") and hasattr(both.of(net, trained=True), "_orig_mod")
