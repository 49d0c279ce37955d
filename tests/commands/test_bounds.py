"""Every number of every config and option has bounds, and those are kept in one line."""

import typing

import pytest
from pydantic import TypeAdapter
from tiny import tiny_config

from pgraft_fast import cli
from pgraft_fast.commands.config import read_config
from pgraft_fast.commands.correct_config import CorrectConfig, read_correct_config
from pgraft_fast.commands.pipeline_config import PipelineConfig, read_pipeline_config
from pgraft_fast.errors import InputError
from pgraft_fast.schema import Settings


def schemas() -> list[type[Settings]]:
    """Every table of the configs imported above."""
    collected, left = [], [Settings]
    while left:
        left += (more := left.pop().__subclasses__())
        collected += more
    return [schema for schema in collected if schema.__module__.startswith("pgraft_fast.")]


def options() -> list[tuple[str, typing.Any]]:
    """(command --option, its type) of all commands."""
    return [
        (f"{name} {option}", hint)
        for name, command in cli.app._subcommands.items()
        for option, hint in typing.get_type_hints(command.target, include_extras=True).items()
        if option != "return"
    ]


def unbounded(part: object, path: str = "") -> list[str]:
    """Where a JSON schema has a number without a least and a largest value."""
    if isinstance(part, list):
        return [location for place, item in enumerate(part) for location in unbounded(item, f"{path}.{place}")]
    if not isinstance(part, dict):
        return []
    paths = []
    if part.get("type") in ("number", "integer"):
        low, high = ({"minimum", "exclusiveMinimum"} & set(part)), ({"maximum", "exclusiveMaximum"} & set(part))
        paths += [] if low and high else [path]
    return paths + [
        more for key, value in part.items() if key != "default" for more in unbounded(value, f"{path}.{key}")
    ]


def test_the_walk_finds_numbers_without_bounds():
    class Open(Settings):
        rows: int
        rate: float | None = None
        sizes: list[int] | None = None

    assert len(unbounded(Open.model_json_schema())) == 3


def test_every_number_of_every_config_has_bounds():
    tables = schemas()
    assert {"TrainSettings", "DdpoSettings", "Lora", "BudgetSettings", "CorrectorSettings"} <= {
        table.__name__ for table in tables
    }
    assert {table.__name__: unbounded(table.model_json_schema()) for table in tables} == {
        table.__name__: [] for table in tables
    }
    assert "Policy" in PipelineConfig.model_json_schema()["$defs"]
    # Not finite is out of every bound but those of a comparison with nan.
    assert all(table.model_config["allow_inf_nan"] is False for table in tables)


def test_every_number_of_every_option_has_bounds():
    hints = options()
    assert {"sample n", "demo seeds", "bench threads", "evaluate samples"} <= {name for name, _ in hints}
    assert {name: unbounded(TypeAdapter(hint).json_schema()) for name, hint in hints} == {name: [] for name, _ in hints}


BAD = ("inf", "-inf", "nan", "-1e40", "1e400", "9" * 40, "-" + "9" * 5000, "true", '"7"', "[1]", "{a = 1}", '""')


@pytest.mark.parametrize(
    "key",
    [
        "seed", "sample.prompts", "sample.candidates", "sample.steps", "sample.eta", "sample.batch_size", "select.k",
        "select.temperature", "train.cut", "train.rounds", "train.steps", "train.epochs", "train.batch_size",
        "train.micro_batch", "train.learning_rate", "train.weight_decay", "train.ema", "train.clip",
        "train.null_prompt", "budget.wall_seconds", "budget.gpu_hours", "budget.model_calls", "budget.joules",
        "ddpo.clip_range", "ddpo.advantage_clip", "ddpo.buffer_size", "ddpo.min_count", "ddpo.inner_epochs",
        "ddpo.timestep_fraction", "ddpo.batch_size", "evaluate.samples", "train.strength", "nft.beta",
        "nft.advantage_clip",
        "nft.kl", "nft.timestep_fraction", "nft.batch_size", "nft.inner_epochs", "nft.decay_rate", "nft.decay_limit",
    ],
)  # fmt: skip
def test_numbers_of_a_config(tmp_path, key):
    table, _, name = key.rpartition(".")
    for value in BAD:
        path = tmp_path / "config.toml"
        path.write_text('run = "run"\n' + (f"[{table}]\n" if table else "") + f"{name} = {value}\n")
        with pytest.raises(InputError, match=rf"config.toml: ({key}|not valid TOML)") as caught:
            read_config(path, {})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("read", "schema"),
    [(read_pipeline_config, PipelineConfig), (read_correct_config, CorrectConfig)],
    ids=["pipeline", "correct"],
)
def test_numbers_of_other_configs(tmp_path, read, schema):
    """Those of their own tables, found by walking."""
    head = 'run = "run"\n'
    if schema is PipelineConfig:
        head += 'rewards = [{kind = "jpeg_size"}]\n[model]\nshipped = "sd"\n'
    tried = 0
    for table, field in schema.model_fields.items():
        if table == "model":
            continue
        for name, spec in TypeAdapter(field.annotation).json_schema().get("properties", {}).items():
            if not {variant.get("type") for variant in (spec, *spec.get("anyOf", ()))} & {"integer", "number"}:
                continue
            for value in BAD:
                path = tmp_path / "config.toml"
                rest = "k = 1\n" if table == "select" and name != "k" else ""
                path.write_text(f"{head}[{table}]\n{rest}{name} = {value}\n")
                with pytest.raises(InputError, match=rf"config.toml: .*({table}\.{name}|not valid TOML)"):
                    read(path, {})
                tried += 1
    assert tried > 150


def test_more_samples_than_can_be_held_or_numbered(tmp_path):
    for text, message in (
        ("[sample]\nprompts = 16000000\ncandidates = 4\n[select]\nk = 2", "sample.prompts=16000000 times"),
        ("[sample]\nprompts = 1000000\n[train]\nrounds = 1000000", "train.rounds=1000000 of 16,000,000 samples each"),
    ):
        (tmp_path / "config.toml").write_text(f'run = "run"\n{text}\n')
        with pytest.raises(InputError, match=message):
            read_config(tmp_path / "config.toml", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "digits", "--steps", "0"], "--steps 0: input should be greater than or equal to 1"),
        (["sample", "digits", "--n", "0"], "--n 0: input should be greater than or equal to 1"),
        (["sample", "digits", "--n", "-1"], "--n -1: input should be greater than or equal to 1"),
        (["sample", "digits", "--n", "9" * 20], "--n 99999999999999999999: input should be less than or equal to"),
        (["sample", "digits", "--seed", "-1"], "--seed -1: "),
        (["sample", "digits", "--seed", str(2**63)], f"--seed {2**63}: "),
        (["sample", "digits", "--guidance", "nan"], "--guidance nan: input should be a finite number"),
        (["sample", "digits", "--guidance", "inf"], "--guidance inf: "),
        (["sample", "digits", "--guidance", "-2"], "--guidance -2.0: "),
        (["sample", "dig\0its"], "source 'dig\\x00its': a zero byte"),
        (["train-base", "digits", "--seed", "-1"], "--seed -1: "),
        (["train-base", "digits", "--seed", str(2**64)], "--seed 18446744073709551616: "),
        (["demo", "--seeds", "0"], "--seeds 0: "),
        (["demo", "--seeds", "100000"], "--seeds 100000: "),
        (["evaluate", "none", "--samples", "0"], "--samples 0: "),
        (["evaluate", "none", "--samples", "-5"], "--samples -5: "),
        (["bench", "ops", "--threads", "0"], "--threads 0: "),
        (["bench", "ops", "--threads", "1000000"], "--threads 1000000: "),
    ],
)
def test_options_out_of_bounds(arguments, message, capsys):
    assert cli.main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"pgraft-fast: {message}") and line.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[budget]\nwall_seconds = inf\n", "budget.wall_seconds = inf: input should be a finite number"),
        ("[budget]\njoules = nan\n", "budget.joules = nan: input should be a finite number"),
        ("[ddpo]\nclip_range = 0.0\n", "ddpo.clip_range = 0.0: input should be greater than 0"),
    ],
)
def test_a_run_with_a_number_out_of_bounds(tmp_path, more, message, capsys):
    assert cli.main(["finetune", str(tiny_config(tmp_path, more=more))]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1 and not (tmp_path / "run").exists()


def test_an_infinite_learning_rate(tmp_path, capsys):
    config = tiny_config(tmp_path)
    config.write_text(config.read_text().replace("learning_rate = 1e-3", "learning_rate = inf"))
    assert cli.main(["finetune", str(config)]) == 2
    assert "train.learning_rate = inf: input should be a finite number" in capsys.readouterr().err
