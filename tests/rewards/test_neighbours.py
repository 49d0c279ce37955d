"""Reward files that import what lies beside them, in this process and in one of their own."""

import importlib
import pickle
import sys
from pathlib import Path

import pytest
import torch

import pgraft_fast.rewards
from pgraft_fast.commands.reward_contents import code_contents
from pgraft_fast.errors import RewardError
from pgraft_fast.rewards import load_reward
from pgraft_fast.rewards.process import CommandReward

SERVE = Path(pgraft_fast.rewards.__file__).with_name("serve.py")
SAMPLES, PROMPTS = torch.zeros(2, 3, 2, 2), ["a", "bb"]
END = "\ndef score(x, prompts):\n    return [VALUE + len(p) for p in prompts]\n"


@pytest.fixture(params=["here", "elsewhere"])
def scores(request):
    """scores(file): the numbers of its function `score`, in this process or in one of its own."""

    def ask(file):
        if request.param == "here":
            return list(load_reward(f"{file}:score")(SAMPLES, PROMPTS))
        with CommandReward([sys.executable, str(SERVE), f"{file}:score"]) as reward:
            return reward(SAMPLES, PROMPTS).tolist()

    return ask


@pytest.fixture(autouse=True)
def nothing_is_left():
    """sys.path, and the modules under their common names, are as before."""
    paths, names = list(sys.path), {name for name in sys.modules if not name.startswith("pgraft_fast_reward_")}
    yield
    assert sys.path == paths
    new = {name for name in sys.modules if not name.startswith("pgraft_fast_reward_")} - names
    assert not {name.partition(".")[0] for name in new} & {"helper", "tools", "mine", "own"}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "mine.py"


@pytest.mark.parametrize(
    "files",
    [
        {"mine.py": "import helper\nVALUE = helper.VALUE", "helper.py": "VALUE = 7"},
        {"mine.py": "from helper import VALUE", "helper.py": "from deeper import VALUE", "deeper.py": "VALUE = 7"},
        {"mine.py": "from helper import *", "helper.py": "import mine\nVALUE = 7 if 'helper' in mine.NAME else 0"},
        {"mine.py": "import tools.one as one\nVALUE = one.VALUE", "tools/__init__.py": "", "tools/one.py": "VALUE = 7"},
        {"mine.py": "import tools.one\nVALUE = tools.one.VALUE", "tools/one.py": "VALUE = 7"},
        {
            "mine.py": "from tools import one, VALUE",
            "tools/__init__.py": "from .two import VALUE",
            "tools/one.py": "",
            "tools/two.py": "from helper import VALUE",
            "helper.py": "VALUE = 7",
        },
        {
            "mine.py": "from .helper import VALUE",
            "helper.py": "from . import own\nVALUE = own.VALUE",
            "own.py": "VALUE = 7",
        },
        {"mine.py": "from . import helper\nVALUE = helper.VALUE", "helper.py": "VALUE = 7", "__init__.py": ""},
        {"mine.py": "VALUE = int((__import__('pathlib').Path(__file__).parent / 'v').read_text())", "v": "7"},
        # The standard library stays what it is, and a folder of data is no package where one is installed.
        {"mine.py": "import random, http.client\nVALUE = random.choice([7])", "random.py": "", "http.py": ""},
        {"mine.py": "import jinja2\nVALUE = 7 * hasattr(jinja2, 'Template')", "jinja2/notes.txt": ""},
    ],
    ids=range(11),
)
def test_neighbours(tmp_path, scores, files):
    files["mine.py"] = f"NAME = 'mine of helper'\n{files['mine.py']}{END}"
    assert scores(write(tmp_path, files)) == [8, 9]


def test_late_imports(tmp_path, scores):
    text = "def score(x, prompts):\n    import helper\n    from helper import f\n    return [helper.VALUE + f()] * 2\n"
    helper = "VALUE = 3\ndef f():\n    from deeper import VALUE\n    return VALUE\n"
    assert scores(write(tmp_path, {"mine.py": text, "helper.py": helper, "deeper.py": "VALUE = 4"})) == [7, 7]


def test_relative_imports_of_a_package(tmp_path, scores):
    files = {
        "own/__init__.py": "",
        "own/common.py": "VALUE = 7",
        "own/rewards/__init__.py": "",
        "own/rewards/mine.py": f"from ..common import VALUE{END}",
    }
    write(tmp_path, files)
    assert scores(tmp_path / "own/rewards/mine.py") == [8, 9]


def test_what_is_missing(tmp_path):
    file = write(tmp_path, {"mine.py": f"import helper{END}", "helper.py": "import nothing_of_this_name"})
    with pytest.raises(
        RewardError, match=r"importing .*mine.py raised ModuleNotFoundError: No module named 'nothing_of"
    ):
        load_reward(f"{file}:score")
    (tmp_path / "helper.py").write_text("import sys\nsys.exit('no\\nlicence')")
    with pytest.raises(RewardError, match=r"mine.py raised SystemExit: no licence$"):
        load_reward(f"{file}:score")


def test_one_name_in_two_folders(tmp_path):
    """Neither sees the other's neighbours, also not when they import while they are called."""
    late = "import helper\ndef score(x, prompts):\n    import late\n    return [helper.VALUE + late.VALUE] * 2\n"
    rewards = []
    for value in (1, 2):
        files = {"mine.py": late, "helper.py": f"VALUE = {value}", "late.py": f"VALUE = {10 * value}"}
        rewards.append(load_reward(f"{write(tmp_path / str(value), files)}:score"))
    assert [reward(SAMPLES, PROMPTS) for reward in rewards + rewards] == [[11, 11], [22, 22]] * 2
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("helper")


def test_two_files_of_one_folder(tmp_path):
    write(tmp_path, {"mine.py": f"from helper import VALUE{END}", "yours.py": f"from helper import VALUE{END}"})
    write(tmp_path, {"helper.py": "VALUE = 7"})
    assert [load_reward(f"{tmp_path}/{name}.py:score")(SAMPLES, PROMPTS) for name in ("mine", "yours")] == [[8, 9]] * 2


def test_a_neighbour_that_others_have_imported_by_its_name(tmp_path, monkeypatch):
    """A notebook's own `helper`, say: the reward has the one beside it, and the notebook keeps its own."""
    other = write(tmp_path / "other", {"helper.py": "VALUE = 100"}).parent
    file = write(tmp_path / "own", {"helper.py": "VALUE = 7", "mine.py": f"import helper\nVALUE = helper.VALUE{END}"})
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(other))
        helper = importlib.import_module("helper")
        assert load_reward(f"{file}:score")(SAMPLES, PROMPTS) == [8, 9]
        assert importlib.import_module("helper") is helper and helper.VALUE == 100
    del sys.modules["helper"]


def test_a_neighbour_with_the_name_of_an_installed_package(tmp_path):
    """One that is imported already, as torch, stays what it is; for everybody else so does any."""
    files = {
        "torch.py": "VALUE = 1",
        "tyro.py": "VALUE = 7",
        "mine.py": f"import torch\nVALUE = 7 * len(torch.ones(1)){END}",
    }
    assert load_reward(f"{write(tmp_path, files)}:score")(SAMPLES, PROMPTS) == [8, 9]
    assert importlib.import_module("tyro").__name__ == "tyro" and hasattr(importlib.import_module("tyro"), "cli")


def test_files_that_changed(tmp_path):
    """They are read anew, also within the second, and nothing is written beside them."""
    file = write(tmp_path, {"mine.py": f"from helper import VALUE{END}", "helper.py": "VALUE = 7"})
    first = load_reward(f"{file}:score")
    (tmp_path / "helper.py").write_text("VALUE = 8")
    assert load_reward(f"{file}:score")(SAMPLES, PROMPTS) == [9, 10] and first(SAMPLES, PROMPTS) == [8, 9]
    assert {path.name for path in tmp_path.iterdir()} == {"mine.py", "helper.py"}


def test_classes_of_the_file(tmp_path):
    """Data classes, and pickle, look for the module by its name."""
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom helper import Base\n"
        "@dataclass\nclass Point(Base):\n    x: int\n    def __call__(self, samples):\n        return [self.x]\n"
        "score = Point(3)\n"
    )
    helper = "class Base:\n    pass\nclass Other:\n    pass\n"
    reward = load_reward(
        f"{write(tmp_path, {'my-own.v1.py': text, 'helper.py': helper}).with_name('my-own.v1.py')}:score"
    )
    assert pickle.loads(pickle.dumps(reward)) == reward
    other = type(reward).__mro__[1]
    assert type(pickle.loads(pickle.dumps(other()))) is other


def test_a_run_goes_on_with_the_same_neighbours_alone(tmp_path):
    file = write(tmp_path, {"mine.py": f"from helper import VALUE{END}", "helper.py": "VALUE = 7", "no.py": ""})
    seen = []
    for name, text in [
        ("no.py", "1"),
        ("helper.py", "VALUE = 8"),
        ("helper.py", "VALUE = 7"),
        ("mine.py", f"VALUE = 7{END}"),
    ]:
        seen.append(code_contents(f"{file}:score"))
        (tmp_path / name).write_text(text)
    assert seen[0] == seen[1] == seen[3] != seen[2]
    assert code_contents("symmetry") == {"function": "symmetry"}
