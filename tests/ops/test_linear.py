"""Linear layers through oneDNN: torch's, to rounding, with their gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pgraft_fast.ops import linear as ops_linear
from pgraft_fast.ops.linear import linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def drawn(*shapes, grad=False):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(shape, generator=generator).requires_grad_(grad) for shape in shapes]


@given(
    rows=st.sampled_from([(1,), (3, 5), (2, 7, 4), (130,)]), n=st.sampled_from([1, 3, 64, 65]),
    m=st.sampled_from([1, 5, 192]), biased=st.booleans(), turned=st.booleans(),
)  # fmt: skip
def test_values_and_gradients(rows, n, m, biased, turned):
    x, weight, bias, grad = drawn((*rows, n), (m, n), (m,), (*rows, m), grad=True)
    if turned:
        x = x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    bias = bias if biased else None
    inputs = [value for value in (x, weight, bias) if value is not None]
    exact = [value.detach().double().requires_grad_() for value in inputs]
    wanted = F.linear(exact[0], exact[1], exact[2] if biased else None)
    output, eager = linear(x, weight, bias), F.linear(x, weight, bias)
    values = [output, *torch.autograd.grad(output, inputs, grad)]
    plain = [eager, *torch.autograd.grad(eager, inputs, grad)]
    truth = [wanted, *torch.autograd.grad(wanted, exact, grad.double())]
    for k, e, t in zip(values, plain, (tensor.detach() for tensor in truth), strict=True):
        assert k.shape == e.shape and k.dtype is torch.float32
        eps = torch.finfo(torch.float32).eps
        # Sums of up to 130 products in another order.
        off, allowed = (float((value.detach().double() - t).abs().max()) for value in (k, e))
        assert off <= 2 * allowed + 8 * eps * float(t.abs().max())
    with torch.no_grad():
        assert torch.equal(linear(x, weight, bias), output)


def test_one_of_several_gradients():
    x, weight, bias = drawn((4, 6), (3, 6), (3,))
    for wanted in range(3):
        leaves = [value.clone().requires_grad_(place == wanted) for place, value in enumerate((x, weight, bias))]
        linear(*leaves).sum().backward()
        assert [value.grad is not None for value in leaves] == [place == wanted for place in range(3)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_torch_s_own(dtype):
    x, weight, bias = drawn((2, 6), (3, 6), (3,))
    assert torch.equal(linear(x.to(dtype), weight.to(dtype), None), F.linear(x.to(dtype), weight.to(dtype)))
    assert torch.equal(linear(x[0], weight, bias), F.linear(x[0], weight, bias))
    assert linear(x[:0], weight, bias).shape == (0, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype is torch.bfloat16


def test_registration():
    x, weight, bias = drawn((2, 5, 6), (3, 6), (3,))
    torch.library.opcheck(torch.ops.pgraft_fast.linear.default, (x, weight, bias))
    torch.library.opcheck(torch.ops.pgraft_fast.linear.default, (x, weight, None))
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    x.requires_grad_()
    assert torch.allclose(compiled(x, weight, bias), linear(x, weight, bias))
    compiled(x, weight, bias).sum().backward()
    assert torch.allclose(x.grad, weight.sum(0).expand_as(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "pays"), [("vendor_id : AuthenticAMD", True), ("vendor_id : GenuineIntel", False), ("", False)]
)
def test_where_it_pays(monkeypatch, text, pays):
    monkeypatch.setattr(ops_linear.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(ops_linear.Path, "read_text", lambda path: text)
    assert ops_linear.onednn_pays.__wrapped__() is pays
    monkeypatch.setattr(ops_linear.platform, "machine", lambda: "aarch64")
    assert not ops_linear.onednn_pays.__wrapped__()
