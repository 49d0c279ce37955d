"""The recipe of the shipped weights: a transformer on the 3,921 shipped molecules, within two hours on two cores.

`pgraft-fast train-base molecules` runs it. Every number that decides the result stands in this file. Molecules are
neither turned nor mirrored in training: the network answers alike by construction.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgraft_fast.diffusion import target_coefficients
from pgraft_fast.errors import InputError
from pgraft_fast.extras import need
from pgraft_fast.files import to_json, write_file
from pgraft_fast.finetune.checkpoint import tensor_bytes
from pgraft_fast.finetune.execution import Execution
from pgraft_fast.finetune.optimizing import follow, warmed_up
from pgraft_fast.sampling import GraphCache, rollout
from pgraft_fast.tasks.molecules.conditions import ANY_ELEMENT, counts
from pgraft_fast.tasks.molecules.data import formula_prompts, qm9, shipped, size_prompts
from pgraft_fast.tasks.molecules.denoiser import MoleculeDenoiser
from pgraft_fast.tasks.molecules.elements import NO_ATOM, WIDTH, Molecules, pack, unpack
from pgraft_fast.tasks.molecules.shipped import FILE, N_MAX, VARIANTS, make_denoiser, padded_elements
from pgraft_fast.tasks.molecules.stability import stability
from pgraft_fast.tasks.weights import load_weights

Log = Callable[[str], None]
Check = Callable[[], None]

_WEIGHT_DECAY = 0.01
_EMA = 0.999
_MIN_TIME = 1e-3
_SAMPLING_STEPS = 100
# Of the training: share in which the learning rate rises; steps between two looks at the clock.
_RISE = 0.05
_LOOK = 50
# Of the rows, those that are told the formula; others are told the number of atoms.
_FORMULA_SHARE = 0.5


@dataclass(frozen=True)
class Sizes:
    """steps, batch: of training. seconds: the training ends then, if it has not before; its result does not repeat.

    every: steps between two lines of the log, at which the weights are saved. rate: the highest learning rate.
    """

    steps: int = 7_050
    batch: int = 512
    seconds: float = math.inf
    every: int = 1_000
    rate: float = 3e-3


# Of EDM's network on QM9: about the molecules that EDM saw; hours on a GPU.
QM9_SIZES = Sizes(steps=400_000, batch=256, every=10_000, rate=3e-4)


def train_molecules(
    folder: Path,
    seed: int = 0,
    log: Log = print,
    check: Check = lambda: None,
    sizes: Sizes | None = None,
    device: str | torch.device = "cpu",
    molecules: Molecules | None = None,
    graphs: GraphCache | None = None,
    **architecture: Any,
) -> MoleculeDenoiser:
    """Denoising regression; writes the averaged weights into `folder`, from time to time as well, and returns them.

    molecules: what to train on, the shipped ones where it is None. On CUDA the gradients of a batch are one graph, kept
    in `graphs`, and nothing comes from the host in a step.
    """
    sizes, molecules, graphs = sizes or Sizes(), molecules or shipped(), GraphCache() if graphs is None else graphs
    device = torch.device(device)
    torch.manual_seed(seed)
    model = make_denoiser(**architecture).to(device)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    n_max = max(N_MAX, int(molecules.count.max()))
    x_0 = pack(molecules.elements, molecules.positions, n_max).to(device)
    elements = padded_elements(molecules, n_max).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), sizes.rate, betas=(0.9, 0.99), weight_decay=_WEIGHT_DECAY, fused=True
    )

    def gradients(inputs: list[Tensor], generators: list[torch.Generator]) -> list[Tensor]:
        optimizer.zero_grad()
        (rows,) = inputs
        loss = denoising_loss(model, x_0[rows], elements[rows])
        loss.backward()
        return [loss.detach()]

    began, progress, step = time.perf_counter(), 0.0, 0
    while progress < 1.0:
        rows = torch.randint(len(molecules), (sizes.batch,), device=device)
        outputs = graphs.run("gradients", gradients, [rows]) if graphs.captures(device) else None
        (loss,) = gradients([rows], []) if outputs is None else outputs
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = sizes.rate * _rate(progress)
        optimizer.step()
        follow(average.parameters(), model.parameters(), warmed_up(_EMA, step))
        check()
        step += 1
        passed = progress
        if step % _LOOK == 0:
            # The device may be behind the host by many steps.
            loss.item()
            passed = (time.perf_counter() - began) / sizes.seconds
        progress = max(step / sizes.steps, progress, passed)
        if step % sizes.every == 0 or progress >= 1.0:
            log(f"step {step} of {sizes.steps}, loss {float(loss):.4f}, {time.perf_counter() - began:.0f} s")
            save(folder, average, {})
    return average


def _rate(progress: float) -> float:
    """Share of the highest learning rate: a short rise, then a cosine to 0."""
    if progress < _RISE:
        return 0.04 + 0.96 * progress / _RISE
    return 0.5 + 0.5 * math.cos(math.pi * (progress - _RISE) / (1.0 - _RISE))


def denoising_loss(model: nn.Module, x_0: Tensor, elements: Tensor) -> Tensor:
    """Mean square error over the atoms, half of the molecules told their formula, half their number of atoms.

    x_0: (B, N, 9). elements: (B, N) int64, -1 for no atom.
    """
    n, variant = x_0.shape[0], VARIANTS["vp"]
    atom = elements != NO_ATOM
    has_formula = torch.rand(n, 1, device=x_0.device) < _FORMULA_SHARE
    condition = elements.masked_fill(atom & has_formula.logical_not(), ANY_ELEMENT)
    # Times spread evenly over each batch.
    places = torch.arange(n, device=x_0.device) / n
    t = (torch.rand(1, device=x_0.device) + places) % 1.0 * (1.0 - _MIN_TIME) + _MIN_TIME
    alpha, sigma = (value.view(-1, 1, 1) for value in variant.schedule.alpha_sigma(t))
    c, d = (value.view(-1, 1, 1) for value in target_coefficients(variant.schedule, t, variant.parameterization))
    noise = torch.randn_like(x_0)
    error = model(alpha * x_0 + sigma * noise, t, condition) - (c * x_0 + d * noise)
    return error.square().mean(dim=2).mul(atom).sum() / atom.sum()


def drawn(model: MoleculeDenoiser, condition: Tensor, steps: int = _SAMPLING_STEPS, seed: int = 0) -> Tensor:
    """Samples (n, N, 9) of a condition (n, N), by the ancestral sampler."""
    run = Execution("eager", condition.device).of(model)
    return rollout(
        run, model.schedule, shape=(condition.shape[1], WIDTH), n=condition.shape[0], steps=steps, solver="ddpm",
        parameterization=model.parameterization, condition=condition, seed=seed, device=condition.device,
    ).x_0  # fmt: skip


def figures(
    model: MoleculeDenoiser, n: int = 1000, steps: int = _SAMPLING_STEPS, seed: int = 0,
    molecules: Molecules | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Figures of n samples with the data's numbers of atoms (see `MoleculeMetrics`), and stable ones of n with its
    formulas. molecules: the data, the shipped ones where it is None. Raises InputError without rdkit.
    """
    from pgraft_fast.tasks.molecules.metrics import measure, reference

    molecules, device = molecules or shipped(), next(model.parameters()).device
    data = reference(molecules.elements, molecules.positions)
    by_size, by_formula = size_prompts(molecules, n).condition, formula_prompts(molecules, n).condition
    if by_size is None or by_formula is None:
        raise InputError("prompts of molecules have a condition")
    measures = vars(measure(*unpack(drawn(model, by_size.to(device), steps, seed).cpu(), counts(by_size)), data))
    stable = stability(*unpack(drawn(model, by_formula.to(device), steps, seed).cpu(), counts(by_formula))).stable
    return {
        **{name: value for name, value in measures.items() if isinstance(value, float)},
        "molecule_stability_by_formula": 100.0 * float(stable.to(torch.float64).mean()),
        "sampling_steps": steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def measured(folder: Path, n: int = 1000) -> dict[str, Any]:
    """Figures of the weights in a folder, written into the file's header as well. Raises InputError without rdkit."""
    model, _ = load_weights(make_denoiser(), folder / FILE)
    measures = figures(model, n)
    save(folder, model, measures)
    return measures


def train_all(
    folder: Path,
    seed: int = 0,
    log: Log = print,
    check: Check = lambda: None,
    sizes: Sizes | None = None,
    device: str | torch.device = "cpu",
    data: str | None = None,
) -> dict[str, Any]:
    """Train, write the weights into `folder`, return what was measured. Raises InputError without rdkit, StorageError.

    data: "qm9" for EDM's network on its part of QM9, on a GPU where there is one, which takes hours. check: called in
    each step; what it raises ends the training.
    """
    need("the figures of molecules", "rdkit", extra="molecules")
    if data not in (None, "qm9"):
        raise InputError(f"--data {data}: molecules are the shipped ones, or those of 'qm9'")
    began = time.perf_counter()
    if data is None:
        train_molecules(folder, seed, log, check, sizes, device)
        measures = measured(folder)
    else:
        device = "cuda" if torch.cuda.is_available() else device
        molecules = qm9("train")
        model = train_molecules(folder, seed, log, check, sizes or QM9_SIZES, device, molecules, network="egnn")
        measures = figures(model, molecules=molecules)
        save(folder, model, measures)
    seconds = time.perf_counter() - began
    log(f"{measures['molecule_stability']:.1f} % of molecules stable, {measures['atom_stability']:.1f} % of atoms")
    return {"vp": measures, "seconds": seconds}


def save(folder: Path, model: nn.Module, measured: dict[str, Any]) -> None:
    """Write the weights, and what was measured into the file's header. Raises StorageError."""
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = to_json({"recipe": "pgraft-fast train-base molecules", **measured}).decode()
    write_file(path, tensor_bytes(model.state_dict(), metadata))
