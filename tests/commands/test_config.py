"""Configs: every mistake in one line that names file, key and the nearest valid name."""

import re
from pathlib import Path

import pytest

import pgraft_fast
from pgraft_fast.commands.config import read_config
from pgraft_fast.commands.correct_config import read_correct_config
from pgraft_fast.commands.finetune import read_run
from pgraft_fast.commands.pipeline_config import read_pipeline_config
from pgraft_fast.errors import InputError

SHIPPED = Path(pgraft_fast.__file__).parent / "configs" / "digits.toml"


def test_shipped_config():
    config = read_config(SHIPPED, {})
    assert (config.train.cut, config.select.k, config.sample.candidates) == (0.25, 4, 16)


def test_a_task_is_known_by_its_name(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('run = "r"\n[task]\nname = "layouts"\nprompts = "labels"\n')
    task = read_config(file, {}).task
    assert (task.name, task.prompts, task.reward) == ("layouts", "labels", "tidy")
    file.write_text('run = "r"\n[task]\nvariant = "flow"\n')
    task = read_config(file, {}).task
    assert (task.name, task.variant, task.reward) == ("digits", "flow", "symmetry")


@pytest.mark.parametrize("name", ["layouts", "publaynet", "rico"])
def test_configs_of_layouts(name):
    """The paper's sizes ask for data and weights of a user's own, and for hours of a GPU."""
    config = read_config(SHIPPED.with_name(f"{name}.toml"), {})
    own = name != "layouts"
    assert config.task.name == "layouts" and config.select.rule == "binary"
    assert (config.task.data is not None, config.task.weights is not None) == (own, own)
    assert (config.budget.gpu_hours is not None) == own and (config.task.device == "auto") == own


def test_overrides():
    config = read_config(SHIPPED, {"run": "elsewhere", "task.reward": "stroke_mass", "seed": None})
    assert (config.run, config.task.reward, config.seed) == ("elsewhere", "stroke_mass", 0)


def test_reward_files_are_found_beside_the_config(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('run = "r"\n[task]\nreward = "mine.py:f"\n')
    assert read_config(file, {}).task.reward == f"{tmp_path}/mine.py:f"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run is missing"),
        ('run = "r"\nsede = 1', "sede is unknown; did you mean seed?"),
        ('run = "r"\n[train]\nlearing_rate = 1.0', "train.learing_rate is unknown; did you mean train.learning_rate?"),
        ('run = "r"\n[train]\ncandidates = 4', "train.candidates is unknown; did you mean sample.candidates?"),
        ('run = "r"\n[trian]\ncut = 0.5', "trian is unknown; did you mean train?"),
        ('run = "r"\n[train]\nsteps = "many"', "train.steps = 'many': input should be a valid integer"),
        ('run = "r"\n[train]\nsteps = 1.5', "train.steps = 1.5: input should be a valid integer"),
        ('run = "r"\n[train]\ncut = 1.0', "train.cut = 1.0: input should be less than 1"),
        ('run = "r"\n[train]\ncut = -0.1', "train.cut = -0.1: input should be greater than or equal to 0"),
        ('run = "r"\n[select]\nk = 20', "select.k=20 is more than sample.candidates=16"),
        ('run = "r"\n[select]\nrule = "top_k"', "select.k is missing: rule top_k needs it"),
        ('run = "r"\n[select]\nrule = "threshold"', "select: rule 'threshold' needs threshold="),
        ('run = "r"\n[select]\nrule = "classical"\nr_max = 1.0', "select: rule 'classical' needs temperature="),
        ('run = "r"\n[select]\nrule = "top_k"\nk = 1\nthreshold = 0.5', "select: threshold= has no meaning for rule"),
        ('run = "r"\n[select]\nrule = "best_of_n"\nk = 1', "select: k= has no meaning for rule 'best_of_n'"),
        ('run = "r"\n[select]\nrule = "topk"', "select.rule = 'topk': input should be 'top_k'"),
        ('run = "r"\n[task]\nname = "cats"', "task.name = 'cats': input should be 'digits'"),
        ('run = "r"\n[task]\nvarient = "vp"', "task.varient is unknown; did you mean task.variant?"),
        ('run = "r"\n[task]\nname = "layouts"\nprompt = "x"', "task.prompt is unknown; did you mean task.prompts?"),
        (
            'run = "r"\n[task]\nname = "layouts"\nn_max = 26',
            "task.n_max = 26: input should be less than or equal to 25",
        ),
        ('run = "r"\n[task]\nname = "layouts"\nconditional = true', "task.conditional is unknown"),
        ('run = "r"\ntask = 3', "task = 3: input should be a valid dictionary"),
        ('run = "r"\n[sample]\nsteps = 0\nsolver = 1', "sample.steps = 0: .*; sample.solver = 1: "),
        ("run = ", "not valid TOML"),
    ],
)
def test_mistakes(tmp_path, text, message):
    file = tmp_path / "c.toml"
    file.write_text(text)
    pattern = message if ".*" in message else re.escape(message)
    with pytest.raises(InputError, match=pattern) as caught:
        read_config(file, {})
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "none.toml", {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not valid TOML"):
        read_config(tmp_path / "binary.toml", {})
    (tmp_path / "deep.toml").write_text("run = " + "[" * 100_000)
    with pytest.raises(InputError, match=r"deep.toml: not valid TOML: nested too deeply"):
        read_config(tmp_path / "deep.toml", {})
    (tmp_path / "long.toml").write_text("run = " + "9" * 5000)
    with pytest.raises(InputError, match=r"long.toml: not valid TOML: Exceeds the limit"):
        read_config(tmp_path / "long.toml", {})


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("read", [read_config, read_pipeline_config, read_correct_config])
def test_byte_order_mark(tmp_path, read, ends):
    """Of every kind of config; U+2028, NEL and a mark inside of a text belong to it."""
    name = {read_config: "digits", read_pipeline_config: "shapes", read_correct_config: "correct_digits"}[read]
    text = SHIPPED.with_name(f"{name}.toml").read_text().replace("\n", ends)
    text = re.sub('run = ".*"', 'run = "a\u2028b\x85c\ufeff"', text)
    configs = []
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "c.toml").write_bytes(text.encode(encoding))
        configs.append(read(tmp_path / "c.toml", {}))
    assert configs[0] == configs[1] and configs[0].run == "a\u2028b\x85c\ufeff"


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "UTF-16;"),
        ("utf-16-be", "UTF-16, or"),
        ("utf-32", "UTF-32;"),
        ("latin-1", "line 2 has"),
    ],
)
def test_other_encodings(tmp_path, encoding, message):
    (tmp_path / "c.toml").write_bytes('seed = 1\nrun = "café"\n'.encode(encoding))
    with pytest.raises(InputError, match=rf"c.toml: not valid TOML: not a text in UTF-8 .*{message}.* save it"):
        read_config(tmp_path / "c.toml", {})


def test_overrides_of_what_is_no_table(tmp_path):
    (tmp_path / "c.toml").write_text('run = "r"\ntask = 3\n')
    with pytest.raises(InputError, match=r"c.toml: task = 3: input should be a valid dictionary"):
        read_config(tmp_path / "c.toml", {"task.reward": "symmetry"})


def test_an_edited_config_of_a_run(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    for text, message in [
        (
            '{"run": "r", "sample": {"steps": "many"}}',
            "config.json: sample.steps = 'many': input should be a",
        ),
        ('{"run": "r", "rewards": [], "model": {}}', "config.json: model.* give folder, or shipped"),
        ('{"run": ', r"damaged \(JSONDecodeError in config.json"),
        ("3", r"damaged \(TypeError in config.json"),
    ]:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_run(str(tmp_path))
    (tmp_path / "config.json").write_text('{"run": "r", "seed": 3}', encoding="utf-8-sig")
    assert read_run(str(tmp_path))[2].seed == 3
