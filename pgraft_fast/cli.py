"""The command line: `pgraft-fast demo | finetune | correct | sample | report | info | train-base | bench` and stages.

Messages and progress go to stderr, JSON to the file named by --json ("-" is stdout). Exit status: 0 done, 1 a benchmark
with a wrong result, 2 wrong input in one line, 130 stopped by the user.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from pgraft_fast.errors import InputError, PgraftError, StoppedError
from pgraft_fast.waiting import wait_passively

app = tyro.extras.SubcommandApp()

Json = Annotated[str | None, arg(metavar="FILE", help='write the result as JSON to FILE; "-" is stdout')]


@app.command
def demo(
    what: Annotated[
        Positional[Literal["digits", "shapes"]], arg(metavar="digits|shapes", help="which world")
    ] = "digits",
    /,
    *,
    out: Annotated[Path | None, arg(metavar="DIR", help="of the report, default runs/demo or runs/demo-shapes")] = None,
    seeds: Annotated[int | None, arg(metavar="N", help="independent repetitions, default 3, of shapes 1")] = None,
    json: Json = None,
) -> None:
    """Methods side by side at equal compute: GRAFT and P-GRAFT on handwritten digits; with DDPO on text to image."""
    from pgraft_fast.commands.console import Terminal

    _check_json(json)
    if seeds is not None and seeds < 1:
        raise InputError(f"--seeds {seeds}: at least 1")
    if what == "shapes":
        from pgraft_fast.commands.comparison import ComparisonSettings
        from pgraft_fast.commands.demo_shapes import run_shapes_demo

        shapes = ComparisonSettings(seeds=tuple(range(seeds or 1)))
        _emit(run_shapes_demo(shapes, out or Path("runs/demo-shapes"), Terminal()), json)
        return
    from pgraft_fast.commands.demo import DemoSettings, run_demo

    _emit(run_demo(DemoSettings(seeds=seeds or 3), out or Path("runs/demo"), Terminal()), json)


@app.command
def finetune(
    config: Annotated[Positional[Path], arg(metavar="CONFIG.toml")],
    /,
    *,
    run: Annotated[str | None, arg(help="run folder, in place of the config's")] = None,
    reward: Annotated[str | None, arg(help="a reward's name or file.py:function, in place of the config's")] = None,
    dry_run: Annotated[
        bool, arg(help="tell what the run would take, from a short timed probe, and write nothing")
    ] = False,
    json: Json = None,
) -> None:
    """Fine-tune as a TOML file says. The same command again goes on where a stopped run was."""
    from pgraft_fast.commands.console import Terminal
    from pgraft_fast.commands.finetune import finetune as run_finetune
    from pgraft_fast.commands.text_config import read_run_config

    _check_json(json)
    settings = read_run_config(config, run, reward)
    if dry_run:
        from pgraft_fast.commands.dry_run import dry_run as plan

        _emit(plan(settings, Terminal()), json)
        return
    try:
        result = run_finetune(settings, Terminal())
    except StoppedError as error:
        raise StoppedError(f"{error}; finished rounds are safe, the same command goes on from there") from error
    _emit(result, json)


@app.command
def sample(
    source: Annotated[Positional[str], arg(metavar="RUN|TASK", help="a run folder, or a task: digits")],
    /,
    *,
    out: Annotated[Path, arg(help="picture (.png) or tensors (.safetensors)")] = Path("samples.png"),
    n: Annotated[int, arg(help="number of samples")] = 100,
    seed: int = 0,
    prompt: Annotated[str | None, arg(help="one prompt for all; default all in turn")] = None,
    steps: int | None = None,
    solver: str | None = None,
    guidance: Annotated[float | None, arg(help="classifier-free guidance scale; 1 is off; default the run's")] = None,
    base: Annotated[bool, arg(help="the reference model alone")] = False,
    json: Json = None,
) -> None:
    """Draw samples."""
    from pgraft_fast.commands.sample import sample as draw

    _check_json(json)
    _emit(
        draw(
            source, out, n=n, seed=seed, prompt=prompt, steps=steps, solver=solver, guidance=guidance, base=base
        ),
        json,
    )  # fmt: skip
    print(out, file=sys.stderr)


@app.command
def report(run: Annotated[Positional[str], arg(metavar="RUN")], /, *, json: Json = None) -> None:
    """Write the report of a finished run again."""
    from pgraft_fast.commands.report import rebuild_report

    _check_json(json)
    result = rebuild_report(run)
    print(result["report"], file=sys.stderr)
    _emit(result, json)


@app.command
def info(*, json: Json = None) -> None:
    """Versions, devices, threads and how they wait, shipped weights."""
    from pgraft_fast.commands.info import info as collect

    _check_json(json)
    _emit(collect(), "-" if json is None else json)


@app.command(name="train-base")
def train_base(
    task: Annotated[Positional[str], arg(metavar="TASK|CONFIG.toml", help="digits, or a config of `correct`")],
    /,
    *,
    out: Annotated[Path, arg(help="folder of a task's weights")] = Path("runs/train-base"),
    seed: int = 0,
    json: Json = None,
) -> None:
    """Train a task's shipped weights again, by the recipe that made them; or the base flow of a config."""
    from pgraft_fast.commands.train_base import train_base as train

    _check_json(json)
    if task.endswith(".toml"):
        _emit(_correct(Path(task), None, ("train-base",)), json)
        return
    _emit(train(task, out, seed), json)


Config = Annotated[Positional[Path], arg(metavar="CONFIG.toml")]
Run = Annotated[str | None, arg(help="run folder, in place of the config's")]


@app.command
def correct(config: Config, /, *, run: Run = None, json: Json = None) -> None:
    """Correct the noise of a flow: train its base, invert the data, fit the correctors, evaluate, report."""
    from pgraft_fast.commands.correct import STAGES

    _check_json(json)
    _emit(_correct(config, run, STAGES), json)


@app.command
def invert(config: Config, /, *, run: Run = None, json: Json = None) -> None:
    """The second stage of `correct`: push the data back through the base."""
    _check_json(json)
    _emit(_correct(config, run, ("invert",)), json)


@app.command(name="fit-corrector")
def fit_corrector(config: Config, /, *, run: Run = None, json: Json = None) -> None:
    """The third stage of `correct`: learn the law of the inverse noise."""
    _check_json(json)
    _emit(_correct(config, run, ("fit-corrector",)), json)


@app.command
def evaluate(
    source: Annotated[
        Positional[Path], arg(metavar="RUN|CONFIG.toml", help="a text-to-image run, or a config of `correct`")
    ],
    /,
    *,
    run: Run = None,
    prompts: Annotated[Path | None, arg(help="file or folder of prompts, in place of the held-out ones")] = None,
    samples: Annotated[int | None, arg(help="in place of the config's")] = None,
    json: Json = None,
) -> None:
    """Base and tuned side by side on held-out or other prompts; or the last stage of `correct`."""
    _check_json(json)
    if source.suffix == ".toml":
        if prompts is not None or samples is not None:
            raise InputError("--prompts and --samples belong to a text-to-image run: give its folder")
        _emit(_correct(source, run, ("evaluate",)), json)
        return
    from pgraft_fast.commands.console import Terminal
    from pgraft_fast.commands.evaluate_text import evaluate_run

    if run is not None:
        raise InputError(f"--run {run}: belongs to a config; the run is {source}")
    if samples is not None and samples < 1:
        raise InputError(f"--samples {samples}: at least 1")
    _emit(evaluate_run(str(source), prompts, samples, Terminal()), json)


@app.command
def export(
    run: Annotated[Positional[Path], arg(metavar="RUN", help="folder of a finished text-to-image run")],
    /,
    *,
    out: Annotated[Path, arg(help="folder or .safetensors file")],
    format: Annotated[Literal["diffusers", "kohya"], arg(help="kohya: names that ComfyUI and A1111 read")] = "kohya",
    json: Json = None,
) -> None:
    """Write the adapter of a run again, under other names."""
    from pgraft_fast.commands.export import export as write

    _check_json(json)
    _emit(write(run, out, format), json)
    print(out, file=sys.stderr)


def _correct(config: Path, run: str | None, stages: tuple[str, ...]) -> dict[str, Any]:
    from pgraft_fast.commands.console import Terminal
    from pgraft_fast.commands.correct import correct as run_stages
    from pgraft_fast.commands.correct_config import read_correct_config

    settings = read_correct_config(config, {"run": run})
    try:
        return run_stages(settings, Terminal(), stages)
    except StoppedError as error:
        raise StoppedError(f"{error}; what is finished is safe, the same command goes on from there") from error


@app.command
def bench(
    what: Annotated[
        Positional[str],
        arg(
            metavar="WHAT",
            help="ops, sampling, round, invert, quality, methods; all of these; scaling; plot, of benchmarks/results",
        ),
    ],
    /,
    *,
    csv: Annotated[
        Path | None,
        arg(metavar="FILE", help="append the rows to FILE; full runs in a checkout go to benchmarks/results otherwise"),
    ] = None,
    quick: Annotated[bool, arg(help="full sizes, few readings, nothing compiled")] = False,
    smoke: Annotated[bool, arg(help="tiny sizes: whether it runs, not how fast")] = False,
    backend: Annotated[str | None, arg(help="of our operations, in place of the choice by device")] = None,
    threads: Annotated[int, arg(help="of torch on a CPU")] = 2,
    only: Annotated[str, arg(metavar="TEXT", help="the cases with TEXT in their label")] = "",
    json: Json = None,
) -> int:
    """Time operations, sampling and rounds against diffusers, torch.compile and plain torch; results are checked."""
    from pgraft_fast.commands.bench import bench as measure

    _check_json(json)
    _check_writable("--csv", csv)
    size = "smoke" if smoke else "quick" if quick else "full"
    result = measure(what, csv=csv, size=size, backend=backend, threads=threads, only=only)
    _emit(result, json)
    return 1 if result["failed"] else 0


def main(args: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    wait_passively()
    # Libraries that tell of what they lack, or how they load, while the result is what counts.
    for name, value in (("TRANSFORMERS_VERBOSITY", "error"), ("HF_HUB_DISABLE_PROGRESS_BARS", "1")):
        os.environ.setdefault(name, value)
    try:
        status = app.cli(prog="pgraft-fast", args=args)
    except StoppedError as error:
        return _fail(error, 130)
    except PgraftError as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail(StoppedError("stopped"), 130)
    return status or 0


def _fail(error: PgraftError, status: int) -> int:
    print(f"pgraft-fast: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def _check_json(path: str | None) -> None:
    """Before any work: the result must have a place to go."""
    if path != "-":
        _check_writable("--json", path)


def _check_writable(option: str, path: str | Path | None) -> None:
    if path is None:
        return
    folder = Path(path).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise InputError(f"{option} {path}: cannot be written there; the folder must exist")


def _emit(result: dict[str, Any], path: str | None) -> None:
    from pgraft_fast.files import to_json, write_file

    if path == "-":
        sys.stdout.write(to_json(result).decode())
    elif path is not None:
        write_file(Path(path), to_json(result))


if __name__ == "__main__":
    sys.exit(main())
