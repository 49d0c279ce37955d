"""What comes with an extra is asked for in one line, before any work, and nothing else needs it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pgraft_fast.errors import InputError
from pgraft_fast.extras import CLI, REPORT, need

WITHOUT = """
import importlib.abc, importlib.util, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {names} else find_spec(name, *rest)
sys.meta_path.insert(0, Missing())
"""


def run_without(names, code):
    """The code, in a process that has not these modules."""
    code = WITHOUT.format(names=set(names)) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_python_needs_none_of_them():
    """Sampling, selecting and training."""
    completed = run_without(
        CLI,
        """
import torch
import pgraft_fast as pf
[getattr(pf, name) for name in pf.__all__]
model = torch.nn.Linear(2, 2)
net = lambda x, t: model(x)
roll = pf.rollout(net, pf.Schedule.linear_flow(), shape=(2,), n=8, steps=4, cuts=(0.5,), parameterization="velocity")
kept = pf.accept(roll.x_0[:, 0].view(2, 4), "top_k", k=1).index
loss = pf.pgraft_loss(net, pf.Schedule.linear_flow(), roll.x_cut[0.5][kept], cut=0.5, parameterization="velocity")
loss.backward()
print(float(model.weight.grad.abs().sum()) > 0)
""",
    )
    assert (completed.stdout, completed.stderr) == ("True\n", "")


def test_a_run_says_what_its_report_needs(tmp_path):
    completed = run_without(
        REPORT,
        f"""
import torch
import pgraft_fast as pf
config = pf.PGraftConfig(run={str(tmp_path / "run")!r})
try:
    pf.PGraftTrainer.from_model(torch.nn.Linear(2, 2), pf.Schedule.cosine(), len, config=config, shape=(2,)).train()
except pf.errors.InputError as error:
    print(error)
""",
    )
    line = "the report of a run needs jinja2, matplotlib, not installed: pip install 'pgraft-fast[cli]'\n"
    assert (completed.stdout, completed.stderr) == (line, "")
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_what_it_needs():
    completed = run_without(["tyro", "tensorboard"], "from pgraft_fast.__main__ import main\nsys.exit(main())")
    line = "the command line needs tyro, tensorboard, not installed: pip install 'pgraft-fast[cli]'"
    assert (completed.returncode, completed.stdout, completed.stderr) == (2, "", f"pgraft-fast: {line}\n")


def test_nothing_is_said_where_all_is_there():
    need("this", "torch", "json")
    with pytest.raises(InputError, match=r"^this needs nowhere, not installed: pip install 'pgraft-fast\[text\]'$"):
        need("this", "torch", "nowhere", extra="text")


def test_the_extra_holds_them():
    """Under the names that they are installed by."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    names = {"sklearn": "scikit-learn"}
    required = {names.get(name, name) for name in CLI}
    assert {requirement.partition(">=")[0] for requirement in project["optional-dependencies"]["cli"]} == required
    assert not required & {requirement.partition(">=")[0] for requirement in project["dependencies"]}
