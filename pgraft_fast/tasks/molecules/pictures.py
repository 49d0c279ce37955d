"""Molecules as pictures: the graph of a valid one on paper, else its atoms in space."""

import importlib.util
import io
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pgraft_fast.tasks.molecules.conditions import counts
from pgraft_fast.tasks.molecules.elements import NO_ATOM, unpack
from pgraft_fast.tasks.molecules.graphs import drawable
from pgraft_fast.tasks.molecules.stability import bond_orders

# px.
SIDE = 120
# Of SYMBOLS: colours as usual in chemistry, radii in angstrom.
_COLOURS = ((232, 232, 232), (80, 80, 84), (48, 80, 220), (220, 36, 30), (110, 190, 60))
_RADII = (0.28, 0.42, 0.40, 0.38, 0.36)
_BOND = (150, 150, 150)
_FINER = 3
_MARGIN = 0.7


def molecule_pictures(samples: Tensor, condition: Tensor) -> np.ndarray:
    """(n, 120, 120, 3) uint8 of samples (n, N, 9) with their condition (n, N).

    Black lines on white, hydrogen not drawn: RDKit's drawing of the bonds that the geometry has, where it is
    valid and in one piece. Balls and sticks on grey: any other, and all without rdkit, seen from where the atoms are
    least behind each other.
    """
    elements, positions = unpack(samples.detach().cpu(), counts(condition).cpu())
    graphs = drawable(elements, positions) if importlib.util.find_spec("rdkit") else [None] * len(elements)
    orders = bond_orders(elements, positions)
    pictures = [
        balls_and_sticks(elements[row], positions[row], orders[row]) if graph is None else _drawing(graph)
        for row, graph in enumerate(graphs)
    ]
    return np.stack(pictures) if pictures else np.zeros((0, SIDE, SIDE, 3), dtype=np.uint8)


def balls_and_sticks(elements: Tensor, positions: Tensor, orders: Tensor) -> np.ndarray:
    """(120, 120, 3) uint8 of one molecule: elements (N,), positions (N, 3), orders of bonds (N, N).

    Atoms whose position is not finite are left out; the farther ones are paler and behind.
    """
    drawn = (elements != NO_ATOM) & positions.isfinite().all(dim=1)
    side = SIDE * _FINER
    picture = Image.new("RGB", (side, side), (244, 244, 244))
    if drawn.any():
        kinds, points, orders = elements[drawn].tolist(), _turned(positions[drawn]), orders[drawn][:, drawn]
        reach = float(points[:, :2].abs().max()) + _MARGIN
        scale = side / 2.0 / max(reach, 2.0)
        places = (side / 2.0 + scale * points[:, :2] * torch.tensor([1.0, -1.0])).tolist()
        depth = points[:, 2]
        paleness = (0.45 * (depth.max() - depth) / (depth.max() - depth.min()).clamp(min=1.0)).tolist()
        draw = ImageDraw.Draw(picture)
        for atom in depth.argsort().tolist():
            for other in orders[atom].nonzero().flatten().tolist():
                if (depth[other], other) > (depth[atom], atom):
                    _stick(draw, places[atom], places[other], int(orders[atom, other]), scale)
            _ball(draw, places[atom], _RADII[kinds[atom]] * scale, _COLOURS[kinds[atom]], paleness[atom])
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _turned(points: Tensor) -> Tensor:
    """Centred, float64, the widest spread along x, the least along the line of sight."""
    points = points.to(torch.float64) - points.to(torch.float64).mean(dim=0)
    axes = torch.linalg.eigh(points.T @ points).eigenvectors.flip(1)
    # A rotation: what is drawn is no mirror image.
    return points @ (axes * torch.tensor([1.0, 1.0, torch.linalg.det(axes).sign().item()]))


def _stick(draw: ImageDraw.ImageDraw, start: list[float], end: list[float], order: int, scale: float) -> None:
    ahead = np.subtract(end, start)
    aside = np.array([-ahead[1], ahead[0]]) / max(float(np.linalg.norm(ahead)), 1e-9)
    for line in range(order):
        shift = (line - (order - 1) / 2.0) * 0.2 * scale * aside
        draw.line([tuple(np.add(start, shift)), tuple(np.add(end, shift))], _BOND, max(1, round(0.1 * scale)))


def _ball(
    draw: ImageDraw.ImageDraw, place: list[float], radius: float, colour: tuple[int, int, int], pale: float
) -> None:
    x, y = place
    edge, inside = ((np.array(colour) * share * (1.0 - pale) + 244.0 * pale).astype(int) for share in (0.6, 1.0))
    draw.ellipse(
        (x - radius, y - radius, x + radius, y + radius), tuple(inside), tuple(edge), max(1, round(radius / 6))
    )
    light = (inside + 2 * np.array([255, 255, 255])) // 3
    draw.ellipse((x - 0.5 * radius, y - 0.55 * radius, x - 0.1 * radius, y - 0.15 * radius), tuple(light))


def _drawing(graph: object) -> np.ndarray:
    from rdkit.Chem.Draw import rdMolDraw2D

    canvas = rdMolDraw2D.MolDraw2DCairo(SIDE, SIDE)
    options: Any = canvas.drawOptions()
    options.padding, options.fixedBondLength, options.minFontSize = 0.08, 28.0, 10
    rdMolDraw2D.PrepareAndDrawMolecule(canvas, graph)
    canvas.FinishDrawing()
    with Image.open(io.BytesIO(canvas.GetDrawingText())) as picture:
        return np.asarray(picture.convert("RGB"))
