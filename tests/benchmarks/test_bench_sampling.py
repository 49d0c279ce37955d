"""The sampling benchmark: quick runs, planted errors, the goals' verdicts, and its GPU half on a CPU."""

import csv
import json
import sys
import types
from dataclasses import replace
from functools import partial

import pytest
import torch

from pgraft_fast.cli import main
from pgraft_fast_benchmarks import bench_sampling, calls, harness, meters, models, sampling_gpu, show
from pgraft_fast_benchmarks.harness import Settings, measure
from pgraft_fast_benchmarks.sampling_goals import GOALS, AtMost, NotSlower, Times

SMOKE = Settings(torch.device("cpu"), size="smoke")
KEYS = {
    "op", "case", "shape", "dtype", "batch", "steps", "provider", "gate", "p50_ms", "p20_ms", "p80_ms", "readings",
    "images_per_s", "model_ms", "non_model_ms", "non_model_share", "model_calls", "error", "times_ours",
}  # fmt: skip
# The published configs at a size for a CPU.
SMALL = {
    "sd21": {
        "sample_size": 16, "block_out_channels": (16,) * 4, "attention_head_dim": 4, "cross_attention_dim": 16,
        "norm_num_groups": 8, "layers_per_block": 1,
    },
    "sdxl": {
        "sample_size": 16, "block_out_channels": (16,) * 3, "attention_head_dim": 4, "cross_attention_dim": 16,
        "norm_num_groups": 8, "layers_per_block": 1, "transformer_layers_per_block": 1, "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    },
    "sd35m": {
        "sample_size": 16, "num_layers": 3, "dual_attention_layers": (0,), "num_attention_heads": 2,
        "attention_head_dim": 8, "joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 16,
        "pos_embed_max_size": 16,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """(JSON, CSV rows) of the command."""
    folder = tmp_path_factory.mktemp("bench")
    paths = [folder / "sampling.json", folder / "sampling.csv"]
    files = ["--json", str(paths[0]), "--csv", str(paths[1])]
    assert main(["bench", "sampling", "--smoke", "--threads", "1", *files]) == 0
    with open(paths[1], newline="") as file:
        return json.loads(paths[0].read_text()), list(csv.DictReader(file))


def test_every_gate_is_green_and_every_row_whole(result):
    data, lines = result
    assert (data["bench"], data["failed"], data["size"]) == ("sampling", 0, "smoke")
    measured = [(row["case"], row["batch"], row["provider"]) for row in data["rows"]]
    cases = [("digits", 16), ("digits", 1), ("tiny sd", 4)]
    assert measured == [(*case, provider) for case in cases for provider in ("diffusers", "ours")]
    for row, line in zip(data["rows"], lines, strict=True):
        assert row["gate"] == "ok" and set(row) == KEYS, row
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] and row["readings"] == 5
        assert row["shape"][0] == row["batch"] and row["error"] <= 1 / 255
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch"] / row["p50_ms"], rel=1e-4)
        assert float(line["non_model_share"]) == row["non_model_share"] > 0 and "energy_j_per_image" not in line
        assert row["model_ms"] > 0
        # Of Stable Diffusion also the prompts, twice, and the decoder.
        assert row["model_calls"] == row["steps"] + (3 if row["case"] == "tiny sd" else 0)


def test_no_verdict_of_a_smoke_run(result):
    assert show.goals(result[0], GOALS)[1] == []
    header, rows = show.details(result[0], bench_sampling.DETAILS)
    assert header == ["case", "provider", "images/s", "rest ms", "share"] and len(rows) == 6


def test_a_wrong_scheduler_is_red(monkeypatch, capsys):
    right = bench_sampling.accelerate

    def wrong(pipe):
        fast = right(pipe)
        fast.scheduler = type(fast.scheduler).from_config(fast.scheduler.config, prediction_type="sample")
        return fast

    monkeypatch.setattr(bench_sampling, "accelerate", wrong)
    assert main(["bench", "sampling", "--smoke", "--threads", "1", "--only", "digits 1x1"]) == 1
    assert "ours fail: pictures differ by" in capsys.readouterr().err
    case = next(iter(bench_sampling.cases(SMOKE)))
    theirs, ours = measure(case, SMOKE)
    assert (ours["gate"], ours["p50_ms"], ours["readings"]) == ("fail", None, 0) and theirs["gate"] == "ok"
    assert {"batch", "steps"} < set(ours) and "non_model_ms" not in ours


def test_an_error_of_a_later_call_is_seen(monkeypatch):
    case = next(iter(bench_sampling.cases(SMOKE)))
    _, ours = case.build(SMOKE)
    call = ours.run
    first = call.pictures

    def drifting(output_type):
        monkeypatch.setattr(call, "pictures", lambda output_type: first(output_type) + 0.01)
        return first(output_type)

    monkeypatch.setattr(call, "pictures", drifting)
    assert ours.gate() == "pictures differ by 1.00e-02, allowed is 1/255"


def test_full_runs_have_the_goals_cases():
    full = replace(SMOKE, size="full")
    cases = [*bench_sampling.cases(full), *sampling_gpu.cases(full)]
    known = {(case.case, case.shape[0], case.columns["steps"]) for case in cases}
    assert {(goal.case, goal.batch, goal.steps) for goal in GOALS} == known
    assert len(list(sampling_gpu.cases(SMOKE))) == 3


def timed(provider, p50, spread=0.02, **more):
    row = {"case": "digits", "batch": 16, "steps": 50, "provider": provider, "gate": "ok", "p50_ms": p50}
    return row | {"p20_ms": p50 * (1 - spread), "p80_ms": p50 * (1 + spread)} | more


def test_goals_are_judged_in_their_sense():
    at_most, strict = AtMost("digits", 16, limit=0.05), AtMost("digits", 16, limit=0.05, strict=True)
    rows = [timed("diffusers", 10.0, non_model_ms=3.0), timed("ours", 9.0, non_model_ms=1.0, non_model_share=0.05)]
    assert at_most.judge(rows) == ("0.05", "met") and strict.judge(rows) == ("0.05", "missed")
    assert Times("digits", 16, column="non_model_ms", factor=3.0).judge(rows) == ("3.00x", "met")
    assert Times("digits", 16, factor=1.3).judge(rows) == ("1.11x", "missed")
    assert AtMost("digits", 1, limit=0.05).judge(rows) is None
    assert at_most.judge([rows[0], {**rows[1], "p50_ms": None}]) == ("-", "no number")
    slower = NotSlower("digits", 16)
    for mine, spread, verdict in (
        (9.9, 0.0, "met"), (10.1, 0.02, "met (noise)"), (10.1, 0.001, "missed"), (10.6, 0.2, "missed"),
    ):  # fmt: skip
        assert slower.judge([timed("diffusers", 10.0, spread), timed("ours", mine, spread)])[1] == verdict
    assert slower.judge([timed("ours", 1.0)]) == ("-", "no number")
    fastest = NotSlower("digits", 16, peers=sampling_gpu.PEERS)
    several = [timed("diffusers", 10.0), timed("diffusers compile", 5.0), timed("ours eager", 1.0), timed("ours", 6.0)]
    assert fastest.judge(several) == ("1.200 of diffusers compile", "missed")


@pytest.mark.parametrize(("name", "millions"), [("sd21", 865.9), ("sdxl", 2567.5), ("sd35m", 2243.2)])
def test_large_models_are_as_large_as_the_published_ones(name, millions):
    with torch.device("meta"):
        denoiser = models.LARGE[name].denoiser()
    assert sum(x.numel() for x in denoiser.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("name", models.LARGE)
def test_gpu_cases_at_a_small_size(name, monkeypatch):
    monkeypatch.setattr(sampling_gpu, "_references", {})
    (case,) = (case for case in sampling_gpu.cases(SMOKE) if case.case == name)

    def build(settings):
        return sampling_gpu.providers(name, models.LARGE[name], 2, 3, settings, **SMALL[name])

    rows = {row["provider"]: row for row in measure(replace(case, build=build, least=2, budget=0.0), SMOKE)}
    xformers = rows.pop("diffusers xformers")
    assert xformers["gate"] == "skipped" and "xformers" in xformers["note"]
    # A short run compiles nothing.
    assert set(rows) == {"diffusers", "ours", "ours eager"}
    for row in rows.values():
        assert (row["gate"], row["readings"], row["model_calls"]) == ("ok", 2, 3), row
        assert row["error"] < 0.1


def test_out_of_memory_skips_the_provider_or_the_case():
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    case = harness.Case("sampling", "sdxl", (64, 4), "bfloat16", None, full, columns={"batch": 64}, optional=True)
    assert [(row["gate"], row["batch"]) for row in measure(case, SMOKE)] == [("skipped", 64)]
    with pytest.raises(torch.OutOfMemoryError):
        measure(replace(case, optional=False), SMOKE)
    fits = harness.Provider("ours", lambda: 0.5, lambda: None, own_clock=True, optional=True)
    providers = [
        fits,
        replace(fits, name="in the gate", gate=full),
        replace(fits, name="later", run=full),
        replace(fits, name="at last", columns=full),
    ]
    rows = measure(replace(case, build=lambda settings: providers), SMOKE)
    assert [row["gate"] for row in rows] == ["ok", "skipped", "skipped", "skipped"]
    assert rows[0]["p50_ms"] == 500.0 and [row["p50_ms"] for row in rows[1:]] == [None] * 3
    assert rows[3]["note"] == "OutOfMemoryError: CUDA out of memory."
    assert show.times({"rows": rows}, ("later",))[1] == [["sampling sdxl bfloat16 64x4", "500", "skipped"]]


class FakeEvent:
    """Each recording is 2 ms after the one before."""

    now = 0.0

    def __init__(self, enable_timing):
        self.at = None

    def record(self):
        FakeEvent.now += 2.0
        self.at = FakeEvent.now

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return other.at - self.at


@pytest.fixture
def gpu(monkeypatch):
    """A device whose clocks and counters are made up; tensors stay on the CPU."""
    energy = iter(range(0, 10**9, 6000))
    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid, NVMLError=RuntimeError,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(energy),
        nvmlDeviceGetClockInfo=lambda handle, kind: 1000 + kind, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2,
        nvmlSystemGetDriverVersion=lambda: b"580.1",
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    for name, value in {
        "Event": FakeEvent, "synchronize": lambda *device: None, "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None, "memory_reserved": lambda device: 10**9,
        "max_memory_reserved": lambda device: 3 * 10**9,
        "get_device_properties": lambda device: types.SimpleNamespace(uuid="1-2"),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(calls, "launches_of", lambda run, images: 7.5)
    return torch.device("cuda")


def test_what_a_gpu_is_asked(gpu, monkeypatch):
    pipe = models.seeded(partial(models.stable_diffusion, "tiny"))
    arguments = {"prompt": ["a", "b"], "num_inference_steps": 3}
    call = calls.PipelineCall(lambda: pipe, arguments, gpu, 2, 3)
    call.twice("np")
    assert [call() for _ in range(2)] == [pytest.approx(2e-3)] * 2
    row = call.columns()
    assert row["images_per_s"] == 1000.0 and row["images_per_gpu_hour"] == 3.6e6 and row["model_calls_per_s"] == 1500.0
    assert row["launches_per_image"] == 7.5
    assert row["host_ms_per_trajectory"] == pytest.approx(3 * row["host_ms_per_step"], rel=1e-4)
    assert 2000.0 < row["peak_memory_mb"] < 2010.0
    # Readings of 4 ms in all say nothing about energy; the models are timed in a call of its own.
    assert row["energy_j_per_image"] is None and "mode" not in row
    assert (row["sm_mhz"], row["memory_mhz"]) == (1001, 1002)
    assert row["model_calls"] == 6 and row["model_ms"] == pytest.approx(12.0)
    monkeypatch.setattr(FakeEvent, "elapsed_time", lambda self, other: 600.0)
    call = calls.PipelineCall(lambda: pipe, arguments, gpu, 2, 3)
    assert call() + call() == pytest.approx(1.2)
    assert call.columns()["energy_j_per_image"] == 3.0


def test_graphs_hide_the_models(gpu):
    pipe = bench_sampling.accelerate(models.seeded(partial(models.stable_diffusion, "tiny")))
    call = calls.PipelineCall(lambda: pipe, {"prompt": "a", "num_inference_steps": 3}, gpu, 1, 3)
    call()
    vars(pipe)["_pgraft_fast"].runner.chosen["case"] = "trajectory_graph"
    row = call.columns()
    assert row["mode"] == "trajectory_graph" and "model_ms" not in row


def test_what_an_operation_asks_of_a_gpu(gpu, monkeypatch):
    for name, value in {"memory_allocated": 10**6, "max_memory_allocated": 5 * 10**6}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(meters, "launches", lambda run: 4)
    board, calls = meters.Board.of(gpu), []
    assert board.driver() == "580.1"
    row = meters.op_columns(lambda: calls.append(1), 2, gpu, board, 0.01)
    assert row["launches"] == 2.0 and row["peak_memory_mb"] == 4.0 and row["host_ms"] > 0
    # The made-up meter tells 6 J between two questions.
    assert row["energy_j"] == pytest.approx(12.0 / (len(calls) - 6) / 2, rel=0.6) and row["sm_mhz"] == 1001
    assert "energy_j" not in meters.op_columns(lambda: None, 1, gpu, board, 0.0)
    assert "energy_j" not in meters.op_columns(lambda: None, 1, gpu, meters.Board(), 1.0)


def test_no_meter_is_no_number(monkeypatch):
    assert meters.Board.of(torch.device("cpu")).joules() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert meters.Board.of(torch.device("cuda")).joules() is None


def test_watched_models_are_left_as_they_were():
    pipe = models.seeded(partial(models.stable_diffusion, "tiny"))
    clock = calls.ModelClock()
    before = pipe.unet.forward
    with calls.watched(calls.models_of(pipe), clock):
        pipe("a", num_inference_steps=2)
    assert clock.calls == 5 and clock.seconds > 0
    assert "forward" not in vars(pipe.unet) and pipe.unet.forward == before
    pipe.unet.forward = before
    with calls.watched([pipe.unet], clock):
        assert pipe.unet.forward is not before
    assert vars(pipe.unet)["forward"] is before


def test_samples_do_not_depend_on_the_batch():
    assert torch.equal(models.normal((3, 5), 4, 1)[:2], models.normal((3, 5), 2, 1))
    assert not torch.equal(models.normal((3, 5), 1, 1), models.normal((3, 5), 1, 2))
