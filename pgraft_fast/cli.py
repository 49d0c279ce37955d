"""The command line: `pgraft-fast demo | plan | finetune | correct | sample | report | info | bench` and stages.

Messages and progress go to stderr, JSON to the file named by --json ("-" is stdout). Exit status: 0 done, 1 a benchmark
with a wrong result, 2 wrong input in one line, 70 what nobody expected, in one line with the path of a log (a traceback
instead with PGRAFT_FAST_TRACEBACK=1), 130 stopped by the user, 141 nobody reads the output any more.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from pgraft_fast.commands.app import app, command
from pgraft_fast.commands.exits import status_of
from pgraft_fast.commands.options import check_writable
from pgraft_fast.commands.output import Json, check_json, emit
from pgraft_fast.errors import InputError, StoppedError, in_a_line
from pgraft_fast.schema import Count, Repetitions, Scale, Seed, Steps, Threads
from pgraft_fast.waiting import wait_passively


@command()
def demo(
    what: Annotated[
        Positional[Literal["digits", "layouts", "molecules", "shapes"]],
        arg(metavar="digits|layouts|molecules|shapes", help="which world"),
    ] = "digits",
    /,
    *,
    out: Annotated[
        Path | None, arg(metavar="DIR", help="of the report, default runs/demo, or runs/demo-WORLD of another world")
    ] = None,
    seeds: Annotated[
        Repetitions | None, arg(metavar="N", help="independent repetitions, default 3, of shapes 1")
    ] = None,
    json: Json = None,
) -> None:
    """Methods side by side at equal compute: GRAFT and P-GRAFT on small worlds; with DDPO on text to image."""
    from pgraft_fast.commands.demo_worlds import run_world
    from pgraft_fast.runs.terminal import Terminal

    check_json(json)
    emit(run_world(what, out, seeds, Terminal()), json)


@command(on_ranks=True)
def finetune(
    config: Annotated[Positional[Path], arg(metavar="CONFIG.toml")],
    /,
    *,
    run: Annotated[str | None, arg(help="run folder, in place of the config's")] = None,
    reward: Annotated[str | None, arg(help="a reward's name or file.py:function, in place of the config's")] = None,
    dry_run: Annotated[
        bool, arg(help="tell what the run would take, from a short timed probe, and write nothing")
    ] = False,
    gpus: Annotated[
        Threads, arg(help="of this machine, a process on each; several machines: torchrun -m pgraft_fast finetune ...")
    ] = 1,
    json: Json = None,
) -> int:
    """Fine-tune as a TOML file says. The same command again goes on where a stopped run was."""
    from pgraft_fast.commands.finetune import finetune as run_finetune
    from pgraft_fast.commands.pipeline_config import read_run_config
    from pgraft_fast.runs.terminal import Terminal

    check_json(json)
    settings = read_run_config(config, run, reward)
    if dry_run:
        from pgraft_fast.commands.dry_run import dry_run as dry

        emit(dry(settings, Terminal(), gpus), json)
        return 0
    if gpus > 1:
        from pgraft_fast.ranks.launch import launch

        options = (("--run", run), ("--reward", reward), ("--json", json))
        arguments = [word for name, value in options if value is not None for word in (name, value)]
        return launch(gpus, ["finetune", str(config), *arguments])
    try:
        result = run_finetune(settings, Terminal())
    except StoppedError as error:
        raise StoppedError(f"{error}; finished rounds are safe, the same command goes on from there") from error
    emit(result, json)
    return 0


@command()
def plan(
    config: Annotated[Positional[Path], arg(metavar="CONFIG.toml")],
    /,
    *,
    out: Annotated[Path | None, arg(metavar="DIR", help="of the report, default plan/ in the run's folder")] = None,
    json: Json = None,
) -> None:
    """Where a run should cut and what it will reach, measured for at most 15 % of its model calls."""
    from pgraft_fast.commands.pipeline_config import read_run_config
    from pgraft_fast.commands.plan import plan_run
    from pgraft_fast.runs.terminal import Terminal

    check_json(json)
    emit(plan_run(read_run_config(config, None, None), out, Terminal()), json)


@command()
def sample(
    source: Annotated[
        Positional[str], arg(metavar="RUN|TASK", help="a run folder, or a task: digits, layouts, molecules")
    ],
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

    check_json(json)
    emit(
        draw(
            source, out, n=n, seed=seed, prompt=prompt, steps=steps, solver=solver, guidance=guidance, base=base
        ),
        json,
    )  # fmt: skip
    print(in_a_line(str(out)), file=sys.stderr)


@command()
def report(run: Annotated[Positional[str], arg(metavar="RUN")], /, *, json: Json = None) -> None:
    """Write the report of a finished run again."""
    from pgraft_fast.commands.report import rebuild_report

    check_json(json)
    result = rebuild_report(run)
    print(in_a_line(result["report"]), file=sys.stderr)
    emit(result, json)


@command(on_ranks=True)
def info(*, json: Json = None) -> None:
    """Versions, devices, threads and how they wait, shipped weights."""
    from pgraft_fast.commands.info import info as collect

    check_json(json)
    emit(collect(), "-" if json is None else json)


@command("train-base", on_ranks=True)
def train_base(
    task: Annotated[
        Positional[str],
        arg(metavar="TASK|CONFIG.toml", help="digits, layouts, molecules, shapes; or a config of `correct`"),
    ],
    /,
    *,
    out: Annotated[Path, arg(help="folder of a task's weights")] = Path("runs/train-base"),
    seed: Seed = 0,
    data: Annotated[
        Path | None,
        arg(help="in place of the shipped one; of layouts PubLayNet's .json, RICO's folder, an .npz; of molecules qm9"),
    ] = None,
    json: Json = None,
) -> None:
    """Train a task's shipped weights again, by the recipe that made them; or the base flow of a config."""
    from pgraft_fast.commands.train_base import train_base as train

    check_json(json)
    emit(train(task, out, seed, data), json)


Config = Annotated[Positional[Path], arg(metavar="CONFIG.toml")]
Run = Annotated[str | None, arg(help="run folder, in place of the config's")]


@command(on_ranks=True)
def correct(config: Config, /, *, run: Run = None, json: Json = None) -> None:
    """Correct the noise of a flow: train its base, invert the data, fit the correctors, evaluate, report."""
    check_json(json)
    emit(_correct(config, run), json)


@command(on_ranks=True)
def invert(config: Config, /, *, run: Run = None, json: Json = None) -> None:
    """The second stage of `correct`: push the data back through the base."""
    check_json(json)
    emit(_correct(config, run, "invert"), json)


@command("fit-corrector", on_ranks=True)
def fit_corrector(config: Config, /, *, run: Run = None, json: Json = None) -> None:
    """The third stage of `correct`: learn the law of the inverse noise."""
    check_json(json)
    emit(_correct(config, run, "fit-corrector"), json)


@command(on_ranks=True)
def evaluate(
    source: Annotated[
        Positional[Path], arg(metavar="RUN|CONFIG.toml", help="a run on a pipeline, or a config of `correct`")
    ],
    /,
    *,
    run: Run = None,
    prompts: Annotated[Path | None, arg(help="file or folder of prompts, in place of the held-out ones")] = None,
    samples: Annotated[Count | None, arg(help="in place of the config's")] = None,
    trust: Annotated[
        bool, arg(help="run the code, and ask the URLs, that the folder's config names as rewards")
    ] = False,
    json: Json = None,
) -> None:
    """Base and tuned side by side on held-out or other prompts; or the last stage of `correct`."""
    from pgraft_fast.commands.evaluate_pipeline import evaluate_source
    from pgraft_fast.runs.terminal import Terminal

    check_json(json)
    emit(evaluate_source(source, run, prompts, samples, Terminal(), trust=trust), json)


@command()
def export(
    run: Annotated[Positional[Path], arg(metavar="RUN", help="folder of a finished run on a pipeline")],
    /,
    *,
    out: Annotated[Path, arg(help="folder or .safetensors file")],
    format: Annotated[Literal["diffusers", "kohya"], arg(help="kohya: names that ComfyUI and A1111 read")] = "kohya",
    json: Json = None,
) -> None:
    """Write the adapter of a run again, under other names."""
    from pgraft_fast.commands.export import export as write

    check_json(json)
    emit(write(run, out, format), json)
    print(in_a_line(str(out)), file=sys.stderr)


def _correct(config: Path, run: str | None, *stages: str) -> dict[str, Any]:
    from pgraft_fast.commands.correct import STAGES, correct_file

    return correct_file(config, run, stages or STAGES)


@command()
def bench(
    what: Annotated[
        Positional[str],
        arg(
            metavar="WHAT",
            help="ops, sampling, round, ranks, invert, quality, methods, cut; all of these; scaling; fleet, computed "
            "for up to 1,024 GPUs; plot, of benchmarks/results",
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
    check_json(json)
    check_writable("--csv", csv)
    size = "smoke" if smoke else "quick" if quick else "full"
    result = measure(what, csv=csv, size=size, backend=backend, threads=threads, only=only)
    emit(result, json)
    return 1 if result["failed"] else 0


def main(args: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    wait_passively()
    # Libraries that tell of what they lack, or how they load, while the result is what counts.
    for name, value in (("TRANSFORMERS_VERBOSITY", "error"), ("HF_HUB_DISABLE_PROGRESS_BARS", "1")):
        os.environ.setdefault(name, value)
    return status_of(lambda: app.cli(prog="pgraft-fast", args=args), args)


if __name__ == "__main__":
    sys.exit(main())
