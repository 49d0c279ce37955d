"""Shared settings of the tests: no deadline for drawn cases, threads that wait passively; a browser for reports."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

# Models of tests are so small that a second thread only waits for the first, on a busy machine ten times as long as
# they both work. Read when torch is loaded, here and in what tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")

from pgraft_fast.waiting import wait_passively

wait_passively()

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

hypothesis.settings.register_profile("project", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("project")
torch.set_num_threads(1)

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Triton's interpreter is a Python loop that coverage would trace line by line, and drawn cases and benchmarks run
    the same lines hundreds of times; other tests run them, too.
    """
    for item in items:
        if any(part in item.nodeid for part in ("triton", "drawn", "parity", "test_bench_")):
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(autouse=True)
def _as_at_the_start() -> None:
    """Tests draw from the global generator, the same numbers in any order of tests, and take one thread, also after a
    command that set another number in this process.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def browse() -> Callable[[Path, int], None]:
    """browse(page, pictures): open it in headless Chromium at two widths and check that it can be read."""
    if _CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian's package chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")

    def check(page: Path, pictures: int) -> None:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_ARGUMENTS)
            for width in (400, 1400):
                tab = browser.new_page(viewport={"width": width, "height": 900})
                errors: list[str] = []
                tab.on("console", lambda message, errors=errors: errors.append(message.text))
                tab.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
                tab.on("requestfailed", lambda request, errors=errors: errors.append(request.url[:80]))
                tab.goto(page.as_uri())
                assert errors == []
                assert tab.evaluate("document.documentElement.scrollWidth") <= width
                drawn = tab.evaluate(
                    "[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.alt.length])"
                )
                assert len(drawn) == pictures
                # Text in the figures is 22 pixels high: it stays readable down to half of that.
                for complete, natural, shown, alt in drawn:
                    assert complete and natural > 0 and shown >= 0.45 * natural and alt > 0
                small = tab.evaluate(
                    "[...document.querySelectorAll('p, td, th, figcaption, h1, h2')]"
                    ".filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).length"
                )
                assert small == 0
            browser.close()

    return check
