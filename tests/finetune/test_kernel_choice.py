"""cuDNN's attention is off where gradients are made, and kernels have an order where that is asked for; elsewhere all
is as it was."""

import importlib
import os
import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.backends import cuda

from pgraft_fast.diffusion import Schedule
from pgraft_fast.errors import InputError
from pgraft_fast.finetune import FinetuneSettings, Prompts, SampleSettings, SelectSettings, Trainer, TrainSettings
from pgraft_fast.finetune.ddpo_settings import DdpoSettings
from pgraft_fast.finetune.kernel_choice import round_kernels, training_kernels
from pgraft_fast.finetune.nft_settings import NftSettings
from pgraft_fast.inverse_noise import FitSettings, Interpolant, Rows, fit_field
from pgraft_fast.inverse_noise.networks import Perceptron

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# (whether gradients are made, whether cuDNN's attention may be chosen)
_SEEN = []


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, x, t):
        _SEEN.append((torch.is_grad_enabled(), cuda.cudnn_sdp_enabled()))
        return self.layer(torch.cat((x, t[:, None]), dim=1))


@pytest.fixture(autouse=True)
def _as_it_was():
    _SEEN.clear()
    yield
    assert cuda.cudnn_sdp_enabled()


def trainer(folder, method, deterministic=False):
    settings = FinetuneSettings(
        method=method, sample=SampleSettings(prompts=2, candidates=4, steps=4, solver="ddim", eta=1.0),
        select=SelectSettings(k=2), train=TrainSettings(rounds=2, cut=0.5 if method == "pgraft" else 0.0, steps=2),
        ddpo=DdpoSettings(), nft=NftSettings(), deterministic=deterministic,
    )  # fmt: skip
    return Trainer(
        Net(), Schedule.cosine(), lambda x: x.sum(1), settings, shape=(4,), parameterization="v",
        prompts=Prompts(["a", "b"]), run=folder, log=lambda text: None,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["pgraft", "graft", "ddpo", "nft"])
def test_every_method(tmp_path, method):
    trainer(tmp_path, method).run_rounds()
    assert (True, False) in _SEEN and (True, True) not in _SEEN
    # Where samples are drawn, everything is as it was.
    assert (False, True) in _SEEN


def test_a_corrector():
    class Seen(Perceptron):
        def forward(self, x, t):
            _SEEN.append((torch.is_grad_enabled(), cuda.cudnn_sdp_enabled()))
            return super().forward(x, t)

    fit_field(
        Seen((4,), 8, 1, zero=True),
        Rows(torch.randn(64, 4)),
        Interpolant("trigonometric"),
        FitSettings(steps=3, batch_size=8),
    )
    assert (True, False) in _SEEN and (True, True) not in _SEEN


def test_an_error_and_a_training_in_another_thread():
    with pytest.raises(ZeroDivisionError), training_kernels(CPU):
        1 / 0  # noqa: B018
    assert cuda.cudnn_sdp_enabled()
    entered, leave = threading.Event(), threading.Event()

    def other():
        with training_kernels(CPU):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with training_kernels(CPU):
        thread.start()
        entered.wait()
    assert not cuda.cudnn_sdp_enabled()
    leave.set()
    thread.join()
    assert cuda.cudnn_sdp_enabled()


def test_what_a_caller_has_chosen():
    cuda.enable_cudnn_sdp(False)
    with training_kernels(CPU):
        assert not cuda.cudnn_sdp_enabled()
    assert not cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION), training_kernels(CPU):
        assert cuda.cudnn_sdp_enabled()


def determinism():
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory,
    )  # fmt: skip


def test_kernels_with_an_order(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = determinism()
    with training_kernels(CPU, deterministic=True), training_kernels(CUDA):
        assert determinism() == before and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with training_kernels(CUDA, deterministic=True):
        assert determinism() == (True, False, False, False) and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with training_kernels(CUDA, deterministic=True):
            pass
        assert determinism() == (True, False, False, False)
    assert determinism() == before


def test_convolutions_with_an_order_in_a_whole_round(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for device, deterministic in ((CPU, True), (CUDA, False)):
        with round_kernels(device, deterministic):
            assert not torch.backends.cudnn.deterministic and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with round_kernels(CUDA, True):
        assert torch.backends.cudnn.deterministic and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_an_operation_without_an_order():
    """As torch says it; other errors stay what they are."""
    told = "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use_...'. You can turn"
    with (
        pytest.raises(InputError, match=r"deterministic = true: cumsum_cuda_kernel does not have .* on CUDA; leave"),
        training_kernels(CUDA, deterministic=True),
    ):
        raise RuntimeError(told)
    with pytest.raises(RuntimeError, match="shapes"), training_kernels(CUDA, deterministic=True):
        raise RuntimeError("shapes do not fit")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("method", ["pgraft", "ddpo", "nft"])
def test_a_deterministic_run_asks_for_them(tmp_path, monkeypatch, method):
    asked = []

    @contextmanager
    def seen(device, deterministic=False):
        asked.append(deterministic)
        yield

    for module in ("training", "ddpo", "nft"):
        monkeypatch.setattr(importlib.import_module(f"pgraft_fast.finetune.{module}"), "training_kernels", seen)
    for deterministic in (True, False):
        trainer(tmp_path / str(deterministic), method, deterministic).run_rounds()
        assert set(asked) == {deterministic}
        asked.clear()
