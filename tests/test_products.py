"""Products by other kernels are the same products: values, gradients, second derivatives, and what PyTorch does around them."""

import pytest
import torch
from torch.nn import functional

from reprbasis.runtime import products
from reprbasis.runtime.products import Linear, hasten, linear, linear_into, product, using

FAST = pytest.mark.skipif(not products._FAST, reason="this processor keeps PyTorch's own kernels")


def data(*shape, wide=96, out=700, seed=0):
    g = torch.Generator().manual_seed(seed)

    def rows(*size):
        return torch.randn(*size, generator=g, dtype=torch.float32)

    return rows(*shape, wide), rows(out, wide), rows(out)


def close(a, b):
    assert a.shape == b.shape
    a, b = a.detach(), b.detach()
    assert float((a - b).abs().max()) <= 2e-5 * float(b.abs().max())


@FAST
@pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 3, 40)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_pytorch(shape, bias):
    x, weight, b = data(*shape)
    inputs = [t.requires_grad_() for t in ([x, weight, b] if bias else [x, weight])]
    assert products._suits(x, weight)
    for way in (linear, functional.linear):
        with torch.no_grad():
            quiet = way(*inputs)
        close(way(*inputs).detach(), quiet)
    upper = torch.randn(*quiet.shape, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(torch.autograd.grad(linear(*inputs), inputs, upper),
                            torch.autograd.grad(functional.linear(*inputs), inputs, upper), strict=True):
        close(ours, theirs)


@FAST
def test_second_derivatives():
    x, weight, _ = data(40)

    def of(way):
        a, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        [slope] = torch.autograd.grad(way(a, w).square().sum(), a, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (a, w))

    for ours, theirs in zip(of(linear), of(functional.linear), strict=True):
        close(ours, theirs)


@FAST
def test_layouts_in_memory_make_no_difference():
    x, weight, _ = data(64)
    wide = torch.randn(700, 192, generator=torch.Generator().manual_seed(2))
    for rows, matrix in ((x, weight.T.contiguous().T), (x, wide[:, ::2]), (x.T.contiguous().T, weight),
                         (torch.cat([x, x], 1)[:, :96], weight), (x, weight[:1].expand(700, -1)), (x[:0], weight)):
        close(linear(rows, matrix), functional.linear(rows, matrix)) if len(rows) else None
        assert linear(rows, matrix).shape == (len(rows), 700)


@FAST
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_what_is_under_a_transform_or_switched_off_goes_the_usual_way():
    x, weight, b = data(40)
    _, slope = torch.func.jvp(lambda a: linear(a, weight, b), (x,), (torch.ones_like(x),))
    close(slope, functional.linear(torch.ones_like(x), weight))
    close(torch.func.vmap(lambda a: linear(a, weight))(x[:, None]), functional.linear(x, weight)[:, None])
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, b).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert not products._suits(x, weight)
        assert torch.equal(linear(x, weight, b), functional.linear(x, weight, b))
    assert not products._suits(x.double(), weight.double())


def test_a_product_into_memory_that_is_there():
    x, weight, b = data(1100)
    out = torch.full((1100, 700), torch.nan)
    assert linear_into(out, x, weight, b) is out
    close(out, functional.linear(x, weight, b))


def test_products_in_bfloat16_come_back_in_float32():
    x, weight, _ = data(40)
    exact = x @ weight.T
    close(product(x, weight.T), exact)
    with using("bfloat16"):
        short = product(x, weight.T)
    assert short.dtype == torch.float32
    assert 1e-4 < float((short - exact).norm() / exact.norm()) < 1e-2


def test_the_layers_of_a_network_keep_their_weights():
    network = torch.nn.Sequential(torch.nn.Linear(96, 700), torch.nn.GELU(), torch.nn.Linear(700, 8, bias=False))
    x, _, _ = data(40)
    before, state = network(x), {k: v.clone() for k, v in network.state_dict().items()}
    hasten(network)
    assert [type(layer) for layer in network] == [Linear, torch.nn.GELU, Linear]
    assert isinstance(network[0], torch.nn.Linear)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    close(network(x), before)
