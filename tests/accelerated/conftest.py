"""Shared settings of the tests of pipelines."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="session")
def _kept_libraries() -> None:
    """Half of the time of building a pipeline goes to looking through what the libraries hold for ever."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(name): a pipeline with a saved LoRA, see `saved.Saved`."""
    pytest.importorskip("peft")
    from accelerated.saved import saver

    return saver(tmp_path_factory)
