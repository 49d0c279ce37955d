"""Features of Inception: what a user without the file or the library reads."""

import importlib.util
import sys

import pytest
import torch

from pgraft_fast.diagnostics import inception_features
from pgraft_fast.errors import InputError


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"no such file; torch-fidelity's releases hold weights-inception"):
        inception_features(tmp_path / "none.pth")


def test_missing_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    file = tmp_path / "weights.pth"
    file.touch()
    with pytest.raises(InputError, match=r"need torch-fidelity .*: pip install 'pgraft_fast\[fid\]'"):
        inception_features(file)


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")
def test_wrong_weights(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"no weights of InceptionV3|need torch-fidelity"):
        inception_features(file)
