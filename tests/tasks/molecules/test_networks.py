"""What the networks of molecules promise: symmetry, and exact answers where the answer is known."""

import math

import pytest
import torch

from pgraft_fast.diffusion import Schedule, convert
from pgraft_fast.sampling import rollout
from pgraft_fast.tasks.molecules.conditions import atoms, condition_of
from pgraft_fast.tasks.molecules.data import shipped
from pgraft_fast.tasks.molecules.denoiser import MoleculeDenoiser
from pgraft_fast.tasks.molecules.egnn import EGNN
from pgraft_fast.tasks.molecules.elements import NO_ATOM, WIDTH, columns_of_elements, pack
from pgraft_fast.tasks.molecules.transformer import DistanceTransformer

N = 12
TEXTS = ["12 atoms", "C2H6O", "1 atom", "2 atoms", "C3H4N2", "HF", "11 atoms"]
SMALL = {
    "transformer": lambda: DistanceTransformer(width=24, depth=1, heads=3),
    "egnn": lambda: EGNN(width=20, depth=2),
}
LAWS = {
    "v": Schedule.cosine(),
    "epsilon": Schedule.vp_linear(),
    "velocity": Schedule.linear_flow(),
    "x_0": Schedule.cosine(),
}


def denoiser(name, parameterization="v", dtype=torch.float32, spread=0.15):
    """Random weights everywhere: layers that begin at 0 would hide errors."""
    torch.manual_seed(0)
    model = MoleculeDenoiser(SMALL[name](), LAWS[parameterization], parameterization).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model.requires_grad_(False).eval()


def inputs(dtype=torch.float32, n_max=N, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(TEXTS), n_max, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    t = torch.linspace(0.05, 0.95, len(TEXTS), dtype=dtype)
    return x, t, condition_of(TEXTS, n_max)


def orthogonal(mirrored, seed=2):
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return q if (torch.linalg.det(q) < 0) == mirrored else -q


def x_0_of(out, x, t, parameterization):
    return convert(out, x, LAWS[parameterization], t, parameterization, "x_0")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_turned_and_mirrored(name, mirrored, dtype, tolerance):
    model, (x, t, condition), q = denoiser(name, dtype=dtype), inputs(dtype), orthogonal(mirrored).to(dtype)
    out = model(x, t, condition)
    turned = model(torch.cat((x[:, :, :3] @ q, x[:, :, 3:]), dim=2), t, condition)
    expected = torch.cat((out[:, :, :3] @ q, out[:, :, 3:]), dim=2)
    assert (turned - expected).abs().max() <= tolerance * expected.abs().max()
    # It is not the answer of something that does nothing.
    assert (out - x).abs().max() > 0.1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", SMALL)
def test_moved(name, dtype, tolerance):
    """A molecule that is moved as a whole is noise in the mean alone: v there is alpha / sigma times it."""
    model, (x, t, condition) = denoiser(name, dtype=dtype), inputs(dtype)
    move = torch.tensor([3.0, -2.0, 1.0], dtype=dtype)
    moved = x.clone()
    moved[:, :, :3] += move
    change = model(moved, t, condition) - model(x, t, condition)
    alpha, sigma = LAWS["v"].alpha_sigma(t)
    expected = torch.zeros_like(change)
    expected[:, :, :3] = (alpha / sigma)[:, None, None] * move
    assert (change - expected).abs().max() <= 2 * tolerance * expected.abs().max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", SMALL)
def test_in_another_order(name, dtype, tolerance):
    """Slots without an atom move as well."""
    model, (x, t, condition) = denoiser(name, dtype=dtype), inputs(dtype)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    out = model(x, t, condition)[:, order]
    assert (model(x[:, order], t, condition[:, order]) - out).abs().max() <= tolerance * out.abs().max()


@pytest.mark.parametrize("filling", [torch.nan, torch.inf, 1e30, 0.0])
@pytest.mark.parametrize("name", SMALL)
def test_what_padding_holds_reaches_no_atom(name, filling):
    model, (x, t, condition) = denoiser(name), inputs()
    other = x.where(atoms(condition)[:, :, None], filling)
    real = atoms(condition)
    assert torch.equal(model(x, t, condition)[real], model(other, t, condition)[real])


@pytest.mark.parametrize("name", SMALL)
def test_neighbours_and_width_change_nothing(name):
    model, (x, t, condition) = denoiser(name), inputs()
    out = model(x, t, condition)
    for row in range(len(TEXTS)):
        alone = model(x[row : row + 1], t[row : row + 1], condition[row : row + 1])
        assert (alone - out[row]).abs().max() <= 1e-5 * out[row].abs().max()
    wide, _, slots = inputs(n_max=N + 7)
    wide[:, :N] = x
    assert (model(wide, t, slots)[:, :N] - out).abs().max() <= 1e-5 * out.abs().max()


def test_radial_functions_are_gaussians_of_the_distance():
    """exp(-u^2 / 2) in float64, from the centre to where it comes to 0 in float32."""
    stage = DistanceTransformer(width=24, depth=1, heads=3).stages[0]
    points = (
        torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(3)) * torch.tensor([0.1, 1.0, 8.0])[:, None, None]
    )
    apart = points[:, :, None].double() - points[:, None].double()
    distance = (apart.square().sum(dim=3) + 1e-4).sqrt().flatten(1)
    centres = torch.linspace(0.0, 6.0, 32, dtype=torch.float64)
    expected = (-0.5 * ((distance[:, None] - centres[:, None]) / (6.0 / 31.0)).square()).exp()
    assert (stage._radial(points) - expected).abs().max() < 1e-5
    assert expected.max() > 0.9 and expected.min() < 1e-45


@pytest.mark.parametrize("name", SMALL)
def test_large_batches_are_computed_in_parts_of_like_sizes(name):
    """Rows come back in their order, with their gradients; few slots without an atom reach the network."""
    model, (x, t, condition) = denoiser(name), inputs()
    rows = torch.arange(140) % len(TEXTS)
    seen = []
    model.network.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    many = x[rows].requires_grad_()
    out = model(many, t[rows], condition[rows])
    sizes, widths, _ = zip(*seen, strict=True)
    assert sizes == (64, 64, 12)
    assert list(widths) == sorted(widths) and widths[0] < widths[-1] == N
    expected = model(x, t, condition)
    assert (out - expected[rows]).abs().max() <= 1e-5 * expected.abs().max()
    out.square().sum().backward()
    few = x.clone().requires_grad_()
    model(few, t, condition).square().sum().backward()
    assert (many.grad - few.grad[rows]).abs().max() <= 1e-4 * few.grad.abs().max()


@pytest.mark.parametrize("parameterization", LAWS)
@pytest.mark.parametrize("name", SMALL)
def test_exact_answers(name, parameterization):
    """x_0 is 0 in padding and in the mean of the positions, and as the formula says in the element columns."""
    dtype = torch.float64
    model, (x, t, condition) = denoiser(name, parameterization, dtype), inputs(dtype)
    x_0 = x_0_of(model(x, t, condition), x, t, parameterization)
    real = atoms(condition)
    assert x_0[~real].abs().max() < 1e-12
    assert x_0[:, :, :3].where(real[:, :, None], 0.0).sum(dim=1).abs().max() < 1e-12 * x_0.abs().max()
    named = real & (condition < 5)
    assert (x_0[named][:, 3:] - columns_of_elements().to(dtype)[condition[named]]).abs().max() < 1e-12
    # Where the element is not said, x_0 is between the elements.
    free = x_0[condition == 5][:, 3:8]
    assert (free.sum(dim=1) - 0.25).abs().max() < 1e-12 and free.min() > -1e-12
    assert (x_0[real][:, :3] - x[real][:, :3]).abs().max() > 0.01


@pytest.mark.parametrize("parameterization", LAWS)
def test_elements_by_bayes_rule(parameterization):
    """Against the densities of the five Gaussians, with the prior that the network gives."""
    dtype, law = torch.float64, LAWS[parameterization]

    class Prior(torch.nn.Module):
        def forward(self, points, columns, kinds, atom, level):
            logits = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04], dtype=dtype).log() + 3.0
            return torch.zeros_like(points), logits.expand(*atom.shape, 5)

    model = MoleculeDenoiser(Prior(), law, parameterization).to(dtype)
    generator = torch.Generator().manual_seed(5)
    t = torch.linspace(0.03, 0.97, 8, dtype=dtype)
    alpha, sigma = (value[:, None, None] for value in law.alpha_sigma(t))
    codes, kinds = columns_of_elements().to(dtype), torch.arange(5).repeat(8, 1)
    columns = alpha * codes[kinds] + sigma * torch.randn(8, 5, 6, generator=generator, dtype=dtype)
    x = torch.cat((torch.zeros(8, 5, 3, dtype=dtype), columns), dim=2)
    x_0 = x_0_of(model(x, t, condition_of(["5 atoms"] * 8, 5)), x, t, parameterization)
    squared = (columns[:, :, None] - alpha[..., None] * codes).square().sum(dim=3)
    density = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04], dtype=dtype) * torch.exp(-0.5 * squared / sigma.square())
    expected = density @ codes / density.sum(dim=2, keepdim=True)
    assert (x_0[:, :, 3:] - expected).abs().max() < 1e-9


@pytest.mark.parametrize("parameterization", LAWS)
@pytest.mark.parametrize("t", [0.0, 1e-9, 1e-3, 1.0])
@pytest.mark.parametrize("name", SMALL)
def test_the_ends_of_time_are_finite(name, t, parameterization):
    model, (x, _, condition) = denoiser(name, parameterization), inputs()
    molecules = shipped().rows(torch.arange(len(TEXTS)))
    x_0 = pack(molecules.elements[:, :N], molecules.positions[:, :N], N)
    condition = molecules.elements[:, :N]
    times = torch.full((len(TEXTS),), t)
    alpha, sigma = (value[:, None, None] for value in LAWS[parameterization].alpha_sigma(times))
    assert model(alpha * x_0 + sigma * x, times, condition).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_gradients_come_from_atoms_alone(name):
    model, (x, t, condition) = denoiser(name, dtype=torch.float64), inputs(torch.float64)
    real = atoms(condition)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    def gradients(values):
        copy = values.clone().requires_grad_()
        parameters = list(model.requires_grad_(True).parameters())
        loss = (model(copy, t, condition) * weight)[real].sum()
        found = torch.autograd.grad(loss, [copy, *parameters], allow_unused=True)
        assert all(gradient is not None and gradient.isfinite().all() for gradient in found)
        return found

    first, second = gradients(x), gradients(x.where(real[:, :, None], 17.0))
    assert not first[0][~real].any() and first[0][real].any()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(gradient.any() for gradient in first[1:])


@pytest.mark.parametrize("name", SMALL)
def test_the_gradient_in_the_state_is_that_of_differences(name):
    model, (x, t, condition) = denoiser(name, dtype=torch.float64), inputs(torch.float64)
    x, t, condition = x[:3], t[:3], condition[:3]
    assert torch.autograd.gradcheck(lambda x: model(x, t, condition), x.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("name", SMALL)
def test_trajectories_keep_what_is_known(name):
    """The samples themselves are exact, and one is the same beside others and in a wider row."""
    dtype = torch.float64
    # Larger weights make chaos of rounding errors.
    model = denoiser(name, dtype=dtype, spread=0.03)

    def drawn(ids, n_max):
        condition = condition_of([TEXTS[i] for i in ids], n_max)
        return rollout(
            model, LAWS["v"], shape=(n_max, WIDTH), sample_ids=torch.tensor(ids), steps=6, parameterization="v",
            condition=condition, seed=4, dtype=dtype,
        ).x_0, condition  # fmt: skip

    x_0, condition = drawn(range(len(TEXTS)), N)
    real, scale = atoms(condition), x_0.abs().max()
    assert x_0[~real].abs().max() < 1e-12
    assert x_0[:, :, :3].where(real[:, :, None], 0.0).sum(dim=1).abs().max() < 1e-10 * scale
    named = real & (condition < 5)
    assert (x_0[named][:, 3:] - columns_of_elements().to(dtype)[condition[named]]).abs().max() < 1e-12
    wider, _ = drawn(range(3, len(TEXTS)), N + 5)
    assert (wider[:, :N] - x_0[3:]).abs().max() < 1e-8 * scale and wider[:, N:].abs().max() < 1e-12


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.slow
def test_the_network_is_one_graph(name):
    """Nothing depends on values, so that it can be captured."""
    model, (x, t, condition) = denoiser(name), inputs()
    exported = torch.export.export(model, (x, t, condition))
    assert torch.allclose(exported.module()(x, t, condition), model(x, t, condition), atol=1e-4)


def test_an_empty_condition_and_one_atom():
    model = denoiser("transformer")
    x, t = torch.randn(2, 4, WIDTH), torch.full((2,), 0.5)
    out = model(x, t, torch.full((2, 4), NO_ATOM))
    alpha, sigma = LAWS["v"].alpha_sigma(0.5)
    assert torch.allclose(out, float(alpha / sigma) * x)
    one = model(x, t, condition_of(["1 atom"] * 2, 4))
    assert torch.allclose(one[:, :, :3], float(alpha / sigma) * x[:, :, :3], atol=1e-6) and math.isfinite(one.sum())
