"""Shared settings of the tests of pipelines."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """In models this small a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(name): a pipeline with a saved LoRA, see `saved.Saved`."""
    pytest.importorskip("peft")
    from integrations.saved import saver

    return saver(tmp_path_factory)
