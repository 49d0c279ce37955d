"""cuDNN's attention is off where gradients are made, and as it was elsewhere."""

import threading

import pytest
import torch
from torch import nn
from torch.backends import cuda

from pgraft_fast.diffusion import Schedule
from pgraft_fast.finetune import FinetuneSettings, Prompts, SampleSettings, SelectSettings, Trainer, TrainSettings
from pgraft_fast.finetune.attention import trusted_attention
from pgraft_fast.finetune.ddpo_settings import DdpoSettings
from pgraft_fast.finetune.nft_settings import NftSettings
from pgraft_fast.inverse_noise import FitSettings, Interpolant, Rows, fit_field
from pgraft_fast.inverse_noise.networks import Perceptron

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


@pytest.mark.parametrize("method", ["pgraft", "graft", "ddpo", "nft"])
def test_every_method(tmp_path, method):
    settings = FinetuneSettings(
        method=method, sample=SampleSettings(prompts=2, candidates=4, steps=4, solver="ddim", eta=1.0),
        select=SelectSettings(k=2), train=TrainSettings(rounds=2, cut=0.5 if method == "pgraft" else 0.0, steps=2),
        ddpo=DdpoSettings(), nft=NftSettings(),
    )  # fmt: skip
    run = Trainer(
        Net(), Schedule.cosine(), lambda x: x.sum(1), settings, shape=(4,), parameterization="v",
        prompts=Prompts(["a", "b"]), run=tmp_path, log=lambda text: None,
    )  # fmt: skip
    run.run_rounds()
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
    with pytest.raises(ZeroDivisionError), trusted_attention():
        1 / 0  # noqa: B018
    assert cuda.cudnn_sdp_enabled()
    entered, leave = threading.Event(), threading.Event()

    def other():
        with trusted_attention():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with trusted_attention():
        thread.start()
        entered.wait()
    assert not cuda.cudnn_sdp_enabled()
    leave.set()
    thread.join()
    assert cuda.cudnn_sdp_enabled()


def test_what_a_caller_has_chosen():
    cuda.enable_cudnn_sdp(False)
    with trusted_attention():
        assert not cuda.cudnn_sdp_enabled()
    assert not cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION), trusted_attention():
        assert cuda.cudnn_sdp_enabled()
