"""The command line: `pgraft-fast demo | plan | finetune | correct | sample | report | info | bench` and stages.

Messages and progress go to stderr, JSON to the file named by --json ("-" is stdout). Exit status: 0 done, 1 a benchmark
with a wrong result, 2 wrong input in one line, 70 what nobody expected, in one line with the path of a log (a traceback
instead with PGRAFT_FAST_TRACEBACK=1), 130 stopped by the user, 141 nobody reads the output any more.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from pgraft_fast.commands.options import F, check_writable, checked
from pgraft_fast.errors import InputError, PgraftError, StoppedError, StorageError
from pgraft_fast.schema import Count, Repetitions, Scale, Seed, Steps, Threads
from pgraft_fast.waiting import wait_passively

app = tyro.extras.SubcommandApp()


def command(name: str | None = None) -> Callable[[F], F]:
    """A subcommand; its options are checked first."""
    add = app.command(name=name)
    return lambda function: add(checked(function))


Json = Annotated[str | None, arg(metavar="FILE", help='write the result as JSON to FILE; "-" is stdout')]


@command()
def demo(
    what: Annotated[
        Positional[Literal["digits", "shapes"]], arg(metavar="digits|shapes", help="which world")
    ] = "digits",
    /,
    *,
    out: Annotated[Path | None, arg(metavar="DIR", help="of the report, default runs/demo or runs/demo-shapes")] = None,
    seeds: Annotated[
        Repetitions | None, arg(metavar="N", help="independent repetitions, default 3, of shapes 1")
    ] = None,
    json: Json = None,
) -> None:
    """Methods side by side at equal compute: GRAFT and P-GRAFT on handwritten digits; with DDPO on text to image."""
    from pgraft_fast.runs.terminal import Terminal

    _check_json(json)
    if what == "shapes":
        from pgraft_fast.commands.comparison import ComparisonSettings
        from pgraft_fast.commands.demo_shapes import run_shapes_demo

        shapes = ComparisonSettings(seeds=tuple(range(seeds or 1)))
        _emit(run_shapes_demo(shapes, out or Path("runs/demo-shapes"), Terminal()), json)
        return
    from pgraft_fast.commands.demo import DemoSettings, run_demo

    _emit(run_demo(DemoSettings(seeds=seeds or 3), out or Path("runs/demo"), Terminal()), json)


@command()
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
    from pgraft_fast.commands.finetune import finetune as run_finetune
    from pgraft_fast.commands.text_config import read_run_config
    from pgraft_fast.runs.terminal import Terminal

    _check_json(json)
    settings = read_run_config(config, run, reward)
    if dry_run:
        from pgraft_fast.commands.dry_run import dry_run as dry

        _emit(dry(settings, Terminal()), json)
        return
    try:
        result = run_finetune(settings, Terminal())
    except StoppedError as error:
        raise StoppedError(f"{error}; finished rounds are safe, the same command goes on from there") from error
    _emit(result, json)


@command()
def plan(
    config: Annotated[Positional[Path], arg(metavar="CONFIG.toml")],
    /,
    *,
    out: Annotated[Path | None, arg(metavar="DIR", help="of the report, default plan/ in the run's folder")] = None,
    json: Json = None,
) -> None:
    """Where a run should cut and what it will reach, measured for at most 15 % of its model calls."""
    from pgraft_fast.commands.plan import plan_run
    from pgraft_fast.commands.text_config import read_run_config
    from pgraft_fast.runs.terminal import Terminal

    _check_json(json)
    _emit(plan_run(read_run_config(config, None, None), out, Terminal()), json)


@command()
def sample(
    source: Annotated[Positional[str], arg(metavar="RUN|TASK", help="a run folder, or a task: digits")],
    /,
    *,
    out: Annotated[Path, arg(help="picture (.png) or tensors (.safetensors)")] = Path("samples.png"),
    n: Annotated[Count, arg(help="number of samples")] = 100,
    seed: Seed = 0,
    prompt: Annotated[str | None, arg(help="one prompt for all; default all in turn")] = None,
    steps: Steps | None = None,
    solver: str | None = None,
    guidance: Annotated[Scale | None, arg(help="classifier-free guidance scale; 1 is off; default the run's")] = None,
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


@command()
def report(run: Annotated[Positional[str], arg(metavar="RUN")], /, *, json: Json = None) -> None:
    """Write the report of a finished run again."""
    from pgraft_fast.commands.report import rebuild_report

    _check_json(json)
    result = rebuild_report(run)
    print(result["report"], file=sys.stderr)
    _emit(result, json)


@command()
def info(*, json: Json = None) -> None:
    """Versions, devices, threads and how they wait, shipped weights."""
    from pgraft_fast.commands.info import info as collect

    _check_json(json)
    _emit(collect(), "-" if json is None else json)


@command("train-base")
def train_base(
    task: Annotated[Positional[str], arg(metavar="TASK|CONFIG.toml", help="digits, or a config of `correct`")],
    /,
    *,
    out: Annotated[Path, arg(help="folder of a task's weights")] = Path("runs/train-base"),
    seed: Seed = 0,
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


@command()
def correct(config: Config, /, *, run: Run = None, json: Json = None) -> None:
    """Correct the noise of a flow: train its base, invert the data, fit the correctors, evaluate, report."""
    from pgraft_fast.commands.correct import STAGES

    _check_json(json)
    _emit(_correct(config, run, STAGES), json)


@command()
def invert(config: Config, /, *, run: Run = None, json: Json = None) -> None:
    """The second stage of `correct`: push the data back through the base."""
    _check_json(json)
    _emit(_correct(config, run, ("invert",)), json)


@command("fit-corrector")
def fit_corrector(config: Config, /, *, run: Run = None, json: Json = None) -> None:
    """The third stage of `correct`: learn the law of the inverse noise."""
    _check_json(json)
    _emit(_correct(config, run, ("fit-corrector",)), json)


@command()
def evaluate(
    source: Annotated[
        Positional[Path], arg(metavar="RUN|CONFIG.toml", help="a text-to-image run, or a config of `correct`")
    ],
    /,
    *,
    run: Run = None,
    prompts: Annotated[Path | None, arg(help="file or folder of prompts, in place of the held-out ones")] = None,
    samples: Annotated[Count | None, arg(help="in place of the config's")] = None,
    json: Json = None,
) -> None:
    """Base and tuned side by side on held-out or other prompts; or the last stage of `correct`."""
    _check_json(json)
    if source.suffix == ".toml":
        if prompts is not None or samples is not None:
            raise InputError("--prompts and --samples belong to a text-to-image run: give its folder")
        _emit(_correct(source, run, ("evaluate",)), json)
        return
    from pgraft_fast.commands.evaluate_text import evaluate_run
    from pgraft_fast.runs.terminal import Terminal

    if run is not None:
        raise InputError(f"--run {run}: belongs to a config; the run is {source}")
    _emit(evaluate_run(str(source), prompts, samples, Terminal()), json)


@command()
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
    from pgraft_fast.commands.correct import correct as run_stages
    from pgraft_fast.commands.correct_config import read_correct_config
    from pgraft_fast.runs.terminal import Terminal

    settings = read_correct_config(config, {"run": run})
    try:
        return run_stages(settings, Terminal(), stages)
    except StoppedError as error:
        raise StoppedError(f"{error}; what is finished is safe, the same command goes on from there") from error


@command()
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
    threads: Annotated[Threads, arg(help="of torch on a CPU")] = 2,
    only: Annotated[str, arg(metavar="TEXT", help="the cases with TEXT in their label")] = "",
    json: Json = None,
) -> int:
    """Time operations, sampling and rounds against diffusers, torch.compile and plain torch; results are checked."""
    try:
        from pgraft_fast_benchmarks.command import bench as measure
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("pgraft_fast_benchmarks"):
            raise
        raise InputError(
            "the benchmarks come with the source, not with the package: git clone it and run make bench"
        ) from error
    _check_json(json)
    check_writable("--csv", csv)
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
        return app.cli(prog="pgraft-fast", args=args) or 0
    except StoppedError as error:
        return _fail(error, 130)
    except PgraftError as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except BrokenPipeError:
        # What is left in the buffers has nowhere to go when the interpreter ends.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    except Exception as error:
        if os.environ.get("PGRAFT_FAST_TRACEBACK", "") not in ("", "0"):
            raise
        from pgraft_fast.commands.surprise import message_of

        return _fail(message_of(error, sys.argv[1:] if args is None else args), 70)


def _fail(error: PgraftError | str, status: int) -> int:
    # The terminal may be gone, too; without a stderr, print would take stdout.
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(f"pgraft-fast: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return status


def _check_json(path: str | None) -> None:
    """Before any work: the result must have a place to go."""
    if path != "-":
        check_writable("--json", path)


def _emit(result: dict[str, Any], path: str | None) -> None:
    from pgraft_fast.files import to_json, write_file

    if path == "-":
        if sys.stdout is None:
            raise StorageError("--json -: stdout is closed")
        try:
            sys.stdout.write(to_json(result).decode())
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StorageError(f"--json -: stdout cannot be written ({error.strerror})") from error
    elif path is not None:
        write_file(Path(path), to_json(result))


if __name__ == "__main__":
    sys.exit(main())
