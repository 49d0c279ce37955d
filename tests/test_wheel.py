"""What goes into the wheel, an editable installation and the source distribution, by pyproject.toml."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")}


@pytest.fixture
def command(monkeypatch, tmp_path):
    """build_py of this checkout, into a folder of the test's."""
    from setuptools.dist import Distribution

    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("PGRAFT_FAST_BUILD_EXT", raising=False)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    # Else metadata are written into the checkout.
    distribution.include_package_data = False
    made = distribution.get_command_obj("build_py")
    made.build_lib, made.compile = str(tmp_path), False
    return made


def test_the_wheel_holds_no_benchmarks(command, tmp_path):
    command.ensure_finalized()
    assert set(command.get_source_files()) >= BENCHMARKS
    command.run()
    assert {path.name for path in tmp_path.iterdir()} == {"pgraft_fast", "pgraft_fast_csrc", "pgraft_fast_kernels"}
    for name in ("py.typed", "configs/shapes.toml", "tasks/digits/weights/vp.safetensors", "report/page.html.j2"):
        assert (tmp_path / "pgraft_fast" / name).is_file(), name


def test_an_editable_installation_holds_them(command):
    command.editable_mode = True
    command.ensure_finalized()
    command.run()
    assert set(command.get_output_mapping().values()) >= BENCHMARKS
