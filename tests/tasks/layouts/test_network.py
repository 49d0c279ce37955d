"""The network of layouts: a set of elements, exact where the condition tells, blind to padding; packed as padded."""

import pytest
import torch
import torch.nn.functional as F
from pages import drawn
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pgraft_fast.diffusion import target_coefficients
from pgraft_fast.sampling import rollout
from pgraft_fast.tasks.layouts.attention import Packing, packed_attention
from pgraft_fast.tasks.layouts.conditions import condition_of, element_mask
from pgraft_fast.tasks.layouts.elements import pack, unpack
from pgraft_fast.tasks.layouts.network import LayoutsDiT, known_values
from pgraft_fast.tasks.layouts.training import denoising_loss, shifted
from pgraft_fast.tasks.layouts.variants import VARIANTS

TEXTS = ("3 elements", "title, text, figure, text", "list at 0.5 0.25 0.75 0.125, 2 elements, table", "25 elements")


@pytest.fixture(params=VARIANTS)
def model(request):
    return network(request.param)


def network(variant="flow", **changes):
    """With weights that do something: at first the gates and the head are 0."""
    torch.manual_seed(0)
    model = LayoutsDiT(VARIANTS[variant], width=32, depth=2, **changes)
    for weight in (model.head.weight, *(block.table for block in model.blocks)):
        nn.init.normal_(weight, std=0.3)
    return model.requires_grad_(False).eval()


def inputs(texts=TEXTS, seed=1):
    torch.manual_seed(seed)
    condition = condition_of(texts)
    return torch.randn(len(texts), 25, 9), torch.linspace(0.1, 0.9, len(texts)), condition


def test_any_order_of_elements_gives_the_same_answer_in_that_order(model):
    x, t, condition = inputs()
    order = torch.randperm(25)
    out = model(x, t, condition)
    torch.testing.assert_close(model(x[:, order], t, condition[:, order]), out[:, order], rtol=1e-5, atol=1e-5)
    assert float((out[3, 1:] - out[3, :1]).abs().amin()) > 0


@pytest.mark.parametrize("attention", ["padded", "packed"])
def test_what_the_condition_tells_is_exact(model, attention):
    model.attention = attention
    x, t, condition = inputs()
    x_0, known = known_values(condition, 5)
    assert known[2, 0].all() and known[2, 3].tolist() == [False] * 4 + [True] * 5 and not known[0, :3].any()
    assert known[0, 3:].all() and x_0[2, 0].tolist() == [0.0, -1.0, 1.0, pytest.approx(0.1), 0.0, 0.0, 2.0, 0.0, 0.0]
    schedule, parameterization = model.variant.schedule, model.variant.parameterization
    for times in (t, torch.full((4,), 1e-3), torch.ones(4)):
        alpha, sigma = (value.double().view(-1, 1, 1) for value in schedule.alpha_sigma(times))
        c, d = (value.double().view(-1, 1, 1) for value in target_coefficients(schedule, times, parameterization))
        noise = torch.randn(x.shape, dtype=torch.float64)
        state = alpha * x_0 + sigma * noise
        out = model(state.float(), times, condition)
        # The state is rounded to float32, which sigma divides.
        torch.testing.assert_close(
            out[known].double(), (c * x_0 + d * noise)[known], rtol=1e-5, atol=1e-6 / float(sigma.min())
        )
    assert bool(model(x, torch.zeros(4), condition).isfinite().all())


def test_samples_hold_what_was_given(model):
    condition = condition_of(["title at 0.5 0.0625 0.5 0.1, text, 2 elements"] * 3)
    samples = rollout(model, model.variant.schedule, shape=(25, 9), n=3, steps=5, condition=condition,
                      parameterization=model.variant.parameterization).x_0  # fmt: skip
    labels, boxes = unpack(samples, torch.tensor([4, 4, 4]))
    assert labels[:, :2].tolist() == [[1, 0]] * 3
    torch.testing.assert_close(boxes[:, 0], torch.tensor([0.5, 0.0625, 0.5, 0.1]).expand(3, 4), rtol=0, atol=1e-5)
    assert float(samples[:, 4:].abs().max()) < 1e-5


@pytest.mark.parametrize("attention", ["padded", "packed"])
def test_what_padding_holds_reaches_no_element(model, attention):
    model.attention = attention
    x, t, condition = inputs()
    element = element_mask(condition)[:, :, None]
    out = model(x, t, condition).where(element, 0.0)
    for other in (x.roll(1, 0), torch.full_like(x, 1e20), torch.full_like(x, torch.nan)):
        assert torch.equal(model(x.where(element, other), t, condition).where(element, 0.0), out)


def test_more_padding_and_other_neighbours_change_no_sample(model):
    x, t, condition = inputs()
    out = model(x, t, condition)
    wider = F.pad(condition, (0, 0, 0, 7))
    wider[:, 25:, 0] = -1
    torch.testing.assert_close(model(F.pad(x, (0, 0, 0, 7), value=3.0), t, wider)[:, :25], out, rtol=1e-5, atol=1e-5)
    alone = model(x[1:2], t[1:2], condition[1:2])
    torch.testing.assert_close(alone, out[1:2], rtol=1e-5, atol=1e-5)


def test_a_narrower_page_has_the_same_sample(model):
    """Noise is keyed by the sample's number and the place in it, so rows before the end are those of a wider sample."""
    condition = condition_of(["title, text, text"] * 2)
    # Else five steps of these weights, which were never trained, make much of a rounding.
    model.head.weight.mul_(0.1)

    def sample(width):
        return rollout(model, model.variant.schedule, shape=(width, 9), n=2, steps=5, condition=condition[:, :width],
                       parameterization=model.variant.parameterization).x_0  # fmt: skip

    torch.testing.assert_close(sample(4), sample(25)[:, :4], rtol=1e-4, atol=1e-4)


def test_no_gradient_from_padding_nor_from_what_is_told(model):
    x, t, condition = inputs()
    x.requires_grad_()
    out = model(x, t, condition)
    element, known = element_mask(condition), known_values(condition, 5)[1]
    (gradient,) = torch.autograd.grad(out[element].square().sum(), x, retain_graph=True)
    assert not bool(gradient[~element].any()) and bool(gradient[element].any())
    (gradient,) = torch.autograd.grad(out.where(known, 0.0).sum(), x)
    assert not bool(gradient.where(known, 0.0)[element].isnan().any())


def test_the_loss_counts_unknown_parts_of_elements_alone(model):
    labels, boxes, _ = drawn(n=9)
    model.requires_grad_(True)

    def gradients(places):
        torch.manual_seed(3)
        model.zero_grad()
        loss = denoising_loss(model, model.variant, labels, places)
        loss.backward()
        return [loss.detach(), *(weight.grad.clone() for weight in model.parameters())]

    first, second = gradients(boxes), gradients(boxes.nan_to_num(nan=0.75))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(bool(part.isfinite().all()) for part in first)


def test_the_loss_is_a_mean_over_unknown_numbers(model):
    """By loops in float64, from what the model was given."""
    labels, boxes, _ = drawn(n=6)
    boxes, seen = boxes.nan_to_num(), []

    class Watched(nn.Module):
        n_labels = 5

        def forward(self, x, t, condition):
            seen.append((x, t, condition))
            return torch.zeros_like(x)

    loss = denoising_loss(Watched(), model.variant, labels, boxes)
    (x, t, condition), x_0 = seen[0], pack(labels, boxes, 5).double()
    alpha, sigma = model.variant.schedule.alpha_sigma(t.double())
    c, d = target_coefficients(model.variant.schedule, t.double(), model.variant.parameterization)
    errors = []
    for row in range(6):
        noise = (x[row].double() - alpha[row] * x_0[row]) / sigma[row]
        target = c[row] * x_0[row] + d[row] * noise
        for slot in range(25):
            kind, given = condition[row, slot, :2].tolist()
            columns = [] if kind == -1 else [*([] if given else range(4)), *(range(4, 9) if kind == 5 else [])]
            errors += [float(target[slot, column]) ** 2 for column in columns]
    assert float(loss) == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_packed_is_padded(model):
    x, t, condition = inputs()
    out = model(x, t, condition)
    model.attention = "packed"
    torch.testing.assert_close(model(x, t, condition), out, rtol=1e-5, atol=1e-5)


COUNTS = (3, 6, 1, 4)


def by_hand():
    """0 within a sample, -inf elsewhere."""
    mask = torch.full((14, 14), -torch.inf)
    for start, stop in ((0, 3), (3, 9), (9, 10), (10, 14)):
        mask[start:stop, start:stop] = 0.0
    return mask


def by_xformers():
    bias = pytest.importorskip("xformers.ops.fmha.attn_bias")
    return bias.BlockDiagonalMask.from_seqlens(list(COUNTS)).materialize((14, 14))


@pytest.mark.parametrize("mask", [by_hand, by_xformers])
def test_packed_attention_is_attention_under_a_block_diagonal_mask(mask):
    element = torch.arange(6) < torch.tensor(COUNTS)[:, None]
    packing = Packing.of(element)
    assert packing.starts.tolist() == [0, 3, 9, 10, 14] and packing.starts.dtype == torch.int32
    query, key, value = torch.randn(3, 14, 2, 8)
    parts = (part.transpose(0, 1).double() for part in (query, key, value))
    expected = F.scaled_dot_product_attention(*parts, attn_mask=mask().double()).transpose(0, 1)
    torch.testing.assert_close(packed_attention(query, key, value, packing).double(), expected, rtol=1e-5, atol=1e-6)
    x = torch.randn(4, 6, 3)
    assert torch.equal(packing.padded(packing.packed(x)), x.where(element[:, :, None], 0.0))


class NoHost(TorchDispatchMode):
    """Raises where a value is read back, a tensor is made of numbers of the host, or a size depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        if func in (aten._local_scalar_dense.default, aten.lift_fresh.default, aten.nonzero.default):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_a_cuda_graph_can_hold_it(model):
    model.requires_grad_(True)
    x, t, condition = inputs()
    labels, boxes, _ = drawn(n=4)
    with NoHost():
        model(x, t, condition)
        denoising_loss(model, model.variant, labels, shifted(labels, boxes)).backward()
        with pytest.raises(AssertionError, match="nonzero"):
            Packing.of(element_mask(condition))


def test_it_learns():
    """The loss on two pages falls."""
    labels, boxes, _ = drawn(n=2)
    labels, boxes = labels.repeat(30, 1), boxes.nan_to_num().repeat(30, 1, 1)
    model = network().requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = denoising_loss(model, model.variant, labels, boxes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
