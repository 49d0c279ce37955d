"""The report of inverse noise correction."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pgraft_fast.inverse_noise import NoiseDiagnosis
from pgraft_fast.report.page import Picture, Section, Table, number_text, write_page
from pgraft_fast.report.plots import Curve, curves_png, picture_grid_png, spectrum_png
from pgraft_fast.tasks.flow import FlowTask
from pgraft_fast.tasks.flow_evaluation import FlowEvaluation, label


def write_correct_report(
    run: Path, task: FlowTask, evaluation: FlowEvaluation, diagnosis: NoiseDiagnosis, result: Mapping[str, Any]
) -> Path:
    """Write run/report. result: as in result.json."""
    inversion = result["inversion"]
    steps = result["config"]["generator"]["steps"]
    lead = (
        f"{inversion['samples']:,} samples of {task.name} pushed back through the flow at {steps} steps, "
        f"{inversion['failed']} failed; {inversion['calls_per_sample']:.1f} network calls each, contraction "
        f"{inversion['contraction']:.2f}, worst round trip {inversion['worst_round_trip']:.1e}."
    )
    sections = [
        _table(evaluation, task),
        _curves(evaluation),
        _samples(evaluation, task, result["config"]),
        _noise(diagnosis),
    ]
    return write_page(run / "report", f"Inverse noise correction of {task.name}: {run.name}", lead, sections)


def _table(evaluation: FlowEvaluation, task: FlowTask) -> Section:
    header = ["samples", "base steps", "corrector steps", "MFLOPs per image", "FD", "sliced Wasserstein", "nearest"]
    rows = []
    for row in evaluation.rows:
        steps = [str(row["base_steps"]), str(row["corrector_steps"] or "")]
        rows.append([row["name"], *steps, f"{row['flops_per_image'] / 1e6:.3g}", *_distances(row)])
    rows.append(["another draw of the data", "", "", "", *_distances(evaluation.floor)])
    note = (
        f"FD: Frechet distance to the perturbed training data, features: {task.feature_name}. Sliced Wasserstein: of "
        "the states themselves. nearest: median distance to the nearest training sample, unperturbed; much less than "
        "that of the data would be copies. FLOPs are counted."
    )
    return Section("Result", table=Table(header, rows, note))


def _distances(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['fd']:.3f}", f"{row['swd']:.4f}", number_text(row["nearest"], 3)]


def _curves(evaluation: FlowEvaluation) -> Section:
    curves = []
    for name in dict.fromkeys(row["name"] for row in evaluation.rows):
        mine = sorted((row for row in evaluation.rows if row["name"] == name), key=lambda row: row["flops_per_image"])
        curves.append(Curve(name, [row["flops_per_image"] / 1e6 for row in mine], [row["fd"] for row in mine]))
    picture = Picture(
        "distance-flops", curves_png(curves, "MFLOPs per image", "Frechet distance", log_x=True),
        "Frechet distance against FLOPs",
        "Distance to the data against the operations of an image; lower left is better.",
    )  # fmt: skip
    return Section("Distance against compute", pictures=[picture])


def _samples(evaluation: FlowEvaluation, task: FlowTask, config: Mapping[str, Any]) -> Section:
    """Data, the base at the corrected number of steps and at its most, and each corrector at the steps configured."""
    steps, own = config["generator"]["steps"], config["corrector"]["integration_steps"]
    chosen = ["data"]
    for name in dict.fromkeys(row["name"] for row in evaluation.rows):
        mine = [row for row in evaluation.rows if row["name"] == name]
        if name == "base":
            chosen += [label(row) for row in mine if row["base_steps"] == steps] + [label(mine[-1])]
        else:
            chosen.append(label(min(mine, key=lambda row: abs(row["corrector_steps"] - own))))
    pictures = []
    for name in dict.fromkeys(chosen):
        file = "samples-" + name.replace(" ", "-").replace("+", "and")
        pictures.append(
            Picture(file, picture_grid_png(task.pictures(evaluation.shown[name])), f"Samples, {name}", name)
        )
    note = "Names tell the steps of the base + those of the corrector. The same place in these grids is the same noise."
    return Section("Samples at the same seeds", [note], pictures=pictures)


def _noise(diagnosis: NoiseDiagnosis) -> Section:
    rows = [
        ["mean of the coordinates, root mean square", f"{diagnosis.mean:.4f}", f"{diagnosis.mean_p:.2g}"],
        ["variance of the coordinates", f"{diagnosis.variance:.4f}", ""],
        ["squared length against chi-squared", f"{diagnosis.radius_ks:.4f}", f"{diagnosis.radius_p:.2g}"],
        ["worst coordinate against the normal law", f"{float(diagnosis.ks.max()):.4f}", f"{diagnosis.ks_p:.2g}"],
        ["energy distance to normal noise", f"{diagnosis.energy:.4f}", f"{diagnosis.energy_p:.2g}"],
    ]
    pictures = []
    if diagnosis.spectrum is not None:
        values = np.asarray(diagnosis.spectrum)[::-1]
        pictures.append(
            Picture(
                "noise-spectrum", spectrum_png(values, diagnosis.spectrum_range), "Spectrum of the inverse noise",
                "Eigenvalues of its covariance; standard normal noise would stay between the lines.",
            )
        )  # fmt: skip
    return Section("Inverse noise", [diagnosis.summary()], Table(["test", "distance", "p-value"], rows), pictures)
