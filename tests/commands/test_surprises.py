"""What nobody expected ends in one line, the path of a log and exit code 70; pipes that close and full disks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_config

from pgraft_fast import cli
from pgraft_fast.commands import surprise

pytestmark = pytest.mark.slow

LINE = re.compile(r"pgraft-fast: unexpected (.*); details: (.*\.log)\n")


@pytest.fixture
def broken(monkeypatch):
    """broken(error): `info` raises it."""

    def put(error: BaseException) -> None:
        def collect():
            raise error

        monkeypatch.setattr("pgraft_fast.commands.info.info", collect)

    return put


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("division by zero"), KeyError("a"), RecursionError("deep"), AssertionError(),
        OSError(5, "Input/output error"), RuntimeError("two\nlines " + "x" * 5000),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_surprise_is_one_line_a_log_and_70(broken, error, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PGRAFT_FAST_CACHE", str(tmp_path))
    broken(error)
    assert cli.main(["info", "--json", str(tmp_path / "out.json")]) == 70
    message = capsys.readouterr().err
    match = LINE.fullmatch(message)
    assert match and type(error).__name__ in match[1] and len(message) < 700 + len(str(tmp_path))
    log = Path(match[2]).read_text()
    assert "Traceback (most recent call last)" in log and "in collect" in log
    assert (
        log.startswith("pgraft-fast info --json ")
        and "pgraft-fast 0." in log
        and Path(match[2]).parent.parent == tmp_path
    )


def test_memory_that_is_full_says_so(broken, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PGRAFT_FAST_CACHE", str(tmp_path))
    broken(MemoryError())
    assert cli.main(["info"]) == 70
    assert re.fullmatch(r"pgraft-fast: out of memory \(MemoryError\); .* details: .*\.log\n", capsys.readouterr().err)


def test_a_cache_that_cannot_be_written(broken, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PGRAFT_FAST_CACHE", str(tmp_path / "file/cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    broken(ValueError("odd"))
    assert cli.main(["info"]) == 70
    match = LINE.fullmatch(capsys.readouterr().err)
    assert match and Path(match[2]).parent == tmp_path and "odd" in Path(match[2]).read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file/temporary"))
    assert cli.main(["info"]) == 70
    message = capsys.readouterr().err
    assert (
        "no folder for a log could be written (Not a directory); set PGRAFT_FAST_CACHE" in message
        and message.count("\n") == 1
    )


def test_developers_can_have_the_traceback(broken, monkeypatch):
    monkeypatch.setenv("PGRAFT_FAST_TRACEBACK", "1")
    broken(ValueError("odd"))
    with pytest.raises(ValueError, match="odd"):
        cli.main(["info"])


def test_other_ends_keep_their_status(broken, capsys):
    broken(KeyboardInterrupt())
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "pgraft-fast: stopped\n"
    broken(BrokenPipeError(32, "Broken pipe"))
    with pytest.raises(SystemExit) as caught:
        cli.main(["info", "--nothing"])
    assert caught.value.code == 2


def test_stopped_while_libraries_are_loaded():
    """At the first import of one, as Ctrl-C would."""
    code = (
        "import runpy, sys\n"
        "class Stopped:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'tyro': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stopped())\n"
        "runpy.run_module('pgraft_fast', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "pgraft-fast: stopped\n")


def test_in_the_middle_of_a_run(tmp_path, monkeypatch, capsys):
    def of_round(*args):
        raise LookupError("nobody expected this")

    # The variable would have the C++ library built again.
    monkeypatch.setattr(surprise, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("pgraft_fast.finetune.rounds.PromptBatch.of_round", of_round)
    assert cli.main(["finetune", str(tiny_config(tmp_path))]) == 70
    match = LINE.fullmatch(capsys.readouterr().err.splitlines(keepends=True)[-1])
    assert match and "in of_round" in Path(match[2]).read_text()


def test_a_reader_that_goes_away():
    command = f"{sys.executable} -m pgraft_fast.cli info | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141) and done.stderr == ""
    closed = f"{sys.executable} -m pgraft_fast.cli info >&-"
    done = subprocess.run(["bash", "-c", closed], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr == "pgraft-fast: --json -: stdout is closed\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_behind_stdout():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pgraft_fast.cli", "info"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "pgraft-fast: --json -: stdout cannot be written (No space left on device)\n"


def test_the_log_names_the_cause(tmp_path, monkeypatch):
    monkeypatch.setenv("PGRAFT_FAST_CACHE", str(tmp_path))
    error = RuntimeError("outer")
    error.__cause__ = KeyError("inner")
    line = surprise.message_of(error, ["sample", "a b"])
    log = Path(line.rpartition("details: ")[2]).read_text()
    assert "KeyError: 'inner'" in log and "RuntimeError: outer" in log and "pgraft-fast sample 'a b'" in log
