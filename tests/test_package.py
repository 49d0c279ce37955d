"""The package as a whole: what importing it costs, its layout, its README."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pgraft_fast as pf

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_is_cheap_and_touches_little():
    """Counted in modules: itself and nothing else."""
    code = (
        "import importlib, json, sys, typing\n"
        "before = set(sys.modules)\nimport pgraft_fast\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    )
    assert json.loads(run_python(code)) == ["pgraft_fast"]
    code = (
        "import json, sys, torch, pgraft_fast, pgraft_fast.sampling\n"
        "heavy = [m for m in ('triton', 'diffusers', 'sklearn', 'scipy', 'matplotlib') if m in sys.modules]\n"
        "print(json.dumps([heavy, torch.cuda.is_initialized()]))"
    )
    assert json.loads(run_python(code)) == [[], False]


def test_every_public_name_without_diffusers_or_triton():
    code = (
        "import sys, pgraft_fast as pf\n"
        "[getattr(pf, name) for name in pf.__all__]\n"
        "print([m for m in ('triton', 'diffusers') if m in sys.modules])"
    )
    assert run_python(code).strip() == "[]"
    assert len(pf.__all__) <= 26
    assert set(pf.__all__) <= set(dir(pf))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pf.nothing  # noqa: B018


def test_editors_see_what_is_there():
    """The block for type checkers names what is loaded, from where it is, and no more."""
    tree = ast.parse((ROOT / "pgraft_fast/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    shown = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    assert set(shown) == {*pf._HOME, *pf._PARTS}
    for name, (module, original) in shown.items():
        assert name == original
        actual = importlib.import_module(f"{module}.{name}") if name in pf._PARTS else getattr(pf, name)
        assert actual is (getattr(pf, name) if name in pf._PARTS else getattr(importlib.import_module(module), name))


def test_the_promised_calls():
    schedule = pf.Schedule.linear_flow()
    for other in (pf.Schedule.vp_linear(), pf.Schedule.scaled_linear(), pf.Schedule.cosine(), pf.Schedule.edm()):
        assert float(other.alpha(0.0)) == 1.0

    def model(x, t):
        return x

    roll = pf.rollout(
        model, schedule, shape=(1, 8, 8), n=256, steps=50, solver="ddpm", parameterization="epsilon", cuts=(0.25,),
        seed=0, sample_ids=None, tuned=None, cut=None,
    )  # fmt: skip
    assert roll.x_0.shape == roll.x_cut[0.25].shape == (256, 1, 8, 8)
    assert roll.sample_id.shape == (256,)
    accepted = pf.accept(torch.randn(32, 8), "top_k", k=2)
    assert accepted.index.shape == (64,)
    assert accepted.mask.shape == (32, 8)
    assert int(accepted.count) == 64
    law = pf.acceptance_law("top_k", n=100, k=10)
    assert (round(law.kl, 3), round(law.mean_quantile, 2)) == (2.019, 0.95)
    assert float(law.density_ratio(1.0)) == pytest.approx(10.0)
    loss = pf.pgraft_loss(model, schedule, roll.x_cut[0.25], cut=0.25, objective="state", parameterization="epsilon")
    assert loss.ndim == 0 and bool(torch.isfinite(loss))


def test_layout():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    folders = {"csrc", "pgraft_fast", "kernels", "benchmarks", "tests", "examples", ".ci"}
    files = {"pyproject.toml", "README.md", "Makefile", "CONTRIBUTING.md", "LICENSE", ".gitignore"}
    assert top <= folders | files


def test_packages_are_listed():
    """The explicit list of pyproject.toml and the folders agree."""
    listed = set(re.findall(r'^    "(pgraft_fast[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.M))
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "pgraft_fast").rglob("__init__.py")}
    folders |= {"pgraft_fast_benchmarks", "pgraft_fast_csrc", "pgraft_fast_kernels"}
    assert listed == folders


def test_arrows_point_one_way():
    """Nothing imports upwards."""
    order = [
        ["amounts", "errors", "extras", "files", "schema", "sizes", "threads", "waiting"], ["ops"], ["diffusion"],
        ["sampling", "selection", "rewards", "schedulers", "ranks"],
        ["finetune", "diagnostics", "inverse_noise"], ["pipelines"], ["tasks"],
        ["report"], ["runs"], ["commands"], ["cli"], ["__main__"],
    ]  # fmt: skip
    level = {name: index for index, names in enumerate(order) for name in names}
    # A task reports nothing, but its config is data; finetune uses rewards, which use errors alone.
    for path in (ROOT / "pgraft_fast").rglob("*.py"):
        home = path.relative_to(ROOT / "pgraft_fast").parts[0].removesuffix(".py")
        for used in re.findall(r"^\s*from pgraft_fast\.(\w+)", path.read_text(), re.M):
            if home != "__init__":
                assert level[used] <= level[home], f"{path.name} of {home} imports {used}"
            if home == "rewards":
                assert used in ("rewards", "errors", "waiting")


def test_readme_shows_a_result_early():
    lines = README.splitlines()
    assert any(line.startswith("| p-graft") for line in lines[:40])


def test_console_script():
    """Help comes without torch, which takes seconds to load."""
    code = (
        "import sys\nfrom pgraft_fast.cli import main\nsys.argv[1:] = ['--help']\n"
        "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "train-base" in shown.stdout and shown.stderr == "False\n"
