"""Figures as PNG bytes: small enough to be read on a telephone, sharp enough for a page."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from pgraft_fast.errors import in_a_line

_DPI = 160
_SIZE = (4.4, 3.1)
_INK = "#333333"
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")

_LINES, _MARKERS = ("-", "--", ":"), ("o", "s", "^")
# Labels of more curves than these would cover them.
_MOST_INSIDE = 4

_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    # Prompts and names may hold dollars, which are no formulas.
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Curve:
    """A labelled line with error bars. error: half-widths, or None."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None


def curves_png(curves: Sequence[Curve], x_label: str, y_label: str, *, log_x: bool = False) -> bytes:
    """Lines with markers."""

    def draw(axes) -> None:
        for index, curve in enumerate(curves):
            axes.errorbar(
                curve.x, curve.y, yerr=curve.error, label=in_a_line(curve.label), markersize=4, capsize=2,
                linewidth=1.5, **line_of(index),
            )  # fmt: skip
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if log_x:
            axes.set_xscale("log")
            # Ticks at 1, 2 and 5 only: more of them overlap.
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 5))
        if len(curves) > _MOST_INSIDE:
            axes.legend(fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        elif len(curves) > 1:
            axes.legend(fontsize=8)

    return _figure(draw)


def line_of(index: int) -> dict[str, str]:
    """Colour, dashes and marker of a curve: no two of eighteen are alike."""
    turn = index // len(COLOURS) % len(_LINES)
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": _LINES[turn], "marker": _MARKERS[turn]}


def spectrum_png(values: np.ndarray, limits: tuple[float, float]) -> bytes:
    """Falling eigenvalues, with the limits between which those of standard normal noise would lie."""

    def draw(axes) -> None:
        axes.plot(np.arange(1, len(values) + 1), values, marker=".", linewidth=1.0, color=COLOURS[0])
        for limit in limits:
            axes.axhline(limit, color=_INK, linewidth=0.8, linestyle=":")
        axes.set_xlabel("eigenvalue")
        axes.set_ylabel("variance")

    return _figure(draw)


def histogram_png(groups: Mapping[str, np.ndarray], x_label: str) -> bytes:
    """Densities of several groups of values on common bins; values that are not finite are left out."""
    finite = {name: values[np.isfinite(values)] for name, values in groups.items()}
    everything = np.concatenate(list(finite.values()))
    bins = np.linspace(everything.min(), max(everything.max(), everything.min() + 1e-6), 41)

    def draw(axes) -> None:
        for index, (name, values) in enumerate(finite.items()):
            label, colour = in_a_line(name), COLOURS[index % len(COLOURS)]
            axes.hist(values, bins=bins, density=True, histtype="stepfilled", alpha=0.12, color=colour)
            axes.hist(values, bins=bins, density=True, histtype="step", linewidth=1.5, color=colour, label=label)
        axes.set_xlabel(x_label)
        axes.set_ylabel("density")
        axes.legend(fontsize=8)

    return _figure(draw)


def bars_png(values: Mapping[str, float], x_label: str) -> bytes:
    """Horizontal bars, the first on top, each with its number."""

    def draw(axes) -> None:
        names = list(values)[::-1]
        numbers = [values[name] for name in names]
        bars = axes.barh([in_a_line(name) for name in names], numbers, color=COLOURS[0])
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
        axes.set_xlim(0, 1.18 * max(*numbers, 1e-09))
        axes.set_xlabel(x_label)
        axes.grid(axis="y", visible=False)

    return _figure(draw)


def picture_grid_png(pictures: np.ndarray, columns: int = 10) -> bytes:
    """A grid of equal pictures, (n, H, W) grey or (n, H, W, 3) uint8, enlarged without smoothing."""
    tile = _tile(pictures, columns)
    scale = max(1, round(_SIZE[0] * _DPI / tile.shape[1]))
    enlarged = tile.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(enlarged).save(buffer, format="png")
    return buffer.getvalue()


def side_by_side_png(
    texts: Sequence[str], columns: Mapping[str, np.ndarray], rewards: Mapping[str, Sequence[float]]
) -> bytes:
    """A text above a row of pictures, one of each column: (n, H, W) or (n, H, W, 3) uint8, n texts; rewards beside."""
    height = min(1.45, 0.3 + 0.65 * _SIZE[0] / len(columns))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_SIZE[0], height * len(texts)), dpi=_DPI, layout="constrained")
        axes = figure.subplots(len(texts), len(columns), squeeze=False)
        for row, text in enumerate(texts):
            for place, (name, pictures) in enumerate(columns.items()):
                axis = axes[row, place]
                axis.imshow(pictures[row], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axis.text(1.04, 0.5, f"{rewards[name][row]:.2f}", transform=axis.transAxes, va="center", fontsize=9)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set(visible=True, color="0.85")
                # The line below a column's name, and alone in later rows, is where the text stands.
                axis.set_title(f"{in_a_line(name)}\n" if row == 0 else " ", fontsize=9)
            first = axes[row, 0]
            first.text(0.0, 1.06, in_a_line(text), transform=first.transAxes, fontsize=9).set_in_layout(False)
        return _png(figure)


def _tile(pictures: np.ndarray, columns: int) -> np.ndarray:
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = pictures.shape[1:3]
    gap = max(1, height // 8)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, *pictures.shape[3:]), 235, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        canvas[y : y + height, x : x + width] = picture
    return canvas


def _figure(draw) -> bytes:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
        draw(figure.subplots())
        return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
