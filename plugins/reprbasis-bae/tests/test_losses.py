"""The step's gradients, entropy and covariance against closed forms and brute force."""

import math

import pytest
import torch
from reprbasis_bae.losses import binarise, covariance, marginal_entropy


def random_bits(n, k, p=0.5, seed=0, dtype=torch.float64):
    return (torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) < p).to(dtype)


def equal(n, dtype=torch.float64):
    return torch.full((n,), 1 / n, dtype=dtype)


def gradient_of(mode, grad, a):
    h = torch.tensor([a], dtype=torch.float64, requires_grad=True)
    binarise(h, mode).backward(torch.tensor([grad], dtype=torch.float64))
    return h.grad.item()


@pytest.mark.parametrize("a", [-3.0, -0.2, 0.0, 0.7, 8.0])
@pytest.mark.parametrize("grad", [1.0, 2.0, -1.0, 1e-3])
def test_each_gradient_is_its_formula(a, grad):
    s = 1 / (1 + math.exp(-a))
    want = {"sigmoid": grad * s * (1 - s), "identity": grad, "reference": grad * (1 - grad), "printed": grad * a * (1 - a)}
    for mode, value in want.items():
        assert gradient_of(mode, grad, a) == pytest.approx(value, abs=1e-7), mode


def test_the_reference_gradient_is_asymmetric():
    assert [gradient_of("reference", g, 0.3) for g in (1.0, 2.0, -1.0)] == [0.0, -2.0, -2.0]


def test_temperature_widens_the_sigmoid():
    h = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    binarise(h, "sigmoid", 4.0).sum().backward()
    want = torch.sigmoid(torch.tensor(2.0 / 4, dtype=torch.float64))
    torch.testing.assert_close(h.grad, (want * (1 - want) / 4)[None])


def test_bits_are_1_from_0_on():
    assert binarise(torch.tensor([-1e-30, 0.0, 1e-30])).tolist() == [0, 1, 1]


@pytest.mark.parametrize(("ones", "n", "value"), [(0, 512, 0.0), (512, 512, 0.0), (256, 512, 1.0), (51, 512, 0.46776),
                                                  (1, 512, 0.020393)])
def test_entropy_values(ones, n, value):
    bits = (torch.arange(n) < ones).double()[:, None]
    assert marginal_entropy(bits, equal(n)).item() == pytest.approx(value, abs=1e-5)
    both = marginal_entropy(torch.cat([bits, random_bits(n, 1)], 1), equal(n)) - marginal_entropy(random_bits(n, 1), equal(n))
    assert both.item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_entropy_of_short_floats_is_finite(dtype):
    bits = torch.tensor([[0.0, 1, 0, 1], [0, 1, 1, 1]], dtype=dtype, requires_grad=True)
    value = marginal_entropy(bits, equal(2, dtype))
    value.backward()
    assert value.item() == pytest.approx(1.0, abs=1e-3)
    assert torch.isfinite(bits.grad).all()


@pytest.mark.parametrize(("ones", "slope"), [(256, 0.0), (51, 3.1762), (1, 8.9972), (511, -8.9972)])
def test_entropy_gradient(ones, slope):
    bits = (torch.arange(512) < ones).double()[:, None].requires_grad_()
    marginal_entropy(bits, equal(512)).backward()
    torch.testing.assert_close(512 * bits.grad, torch.full((512, 1), slope, dtype=torch.float64), rtol=0, atol=1e-4)


def test_a_constant_bit_is_not_pushed_harder_than_a_rare_one():
    """At p = 0 the published form gives 34.7; here p is kept 1 / 2N away from 0: log2(2N - 1), one bit more than at 1 / N."""
    bits = torch.zeros(512, 2, dtype=torch.float64)
    bits[:, 1] = 1
    bits.requires_grad_()
    marginal_entropy(bits, equal(512)).backward()
    torch.testing.assert_close(512 * bits.grad[0], torch.tensor([1.0, -1.0], dtype=torch.float64) * math.log2(1023))


def test_the_mean_of_batch_entropies_is_biased_as_miller_and_madow_say():
    n, bits = 64, random_bits(64 * 4000, 1)
    found = torch.stack([marginal_entropy(b, equal(n)) for b in bits.split(n)]).mean() - 1
    assert found.item() == pytest.approx(-1 / (2 * n * math.log(2)), abs=5e-4)


def brute(bits):
    c = torch.cov(bits.T)
    return (c.abs().sum() - c.diagonal().abs().sum()), c


@pytest.mark.parametrize("n", [2, 3, 40])
def test_covariance_by_brute_force(n):
    bits = random_bits(n, 9)
    bits[:, 3], bits[:, 5] = 0, 1  # constant: they add nothing and get nothing
    value = covariance(bits.requires_grad_(), equal(n))
    value.backward()
    want, c = brute(bits.detach())
    torch.testing.assert_close(value, want, rtol=0, atol=1e-12)
    sign = torch.where(c.abs() > 1e-12, c.sign(), 0).fill_diagonal_(0)
    slope = 2 / (n - 1) * (bits.detach() - bits.detach().mean(0)) @ sign
    torch.testing.assert_close(bits.grad, slope, rtol=0, atol=1e-12)
    assert not bits.grad[:, [3, 5]].any()


def test_covariance_in_tiles_is_the_same(monkeypatch):
    bits = random_bits(50, 23)
    one = covariance(bits, equal(50))
    monkeypatch.setattr("reprbasis_bae.losses.TILE", 5)
    torch.testing.assert_close(covariance(bits, equal(50)), one, rtol=0, atol=1e-12)


def test_weights_are_repetitions():
    """A row of double weight counts as two rows do in the biased covariance; the entropy sees only the mean."""
    bits = random_bits(20, 6)
    twice = torch.cat([bits, bits[:5]])
    share = torch.cat([torch.full((5,), 2.0), torch.ones(15)]).double()
    share /= share.sum()
    torch.testing.assert_close(marginal_entropy(bits, share), marginal_entropy(twice, equal(25)))
    factor = (1 - share.square().sum()) / (1 - 1 / 25)
    torch.testing.assert_close(covariance(bits, share) * factor, covariance(twice, equal(25)))


def test_a_random_choice_of_bits_is_right_on_average():
    bits, g = random_bits(200, 30), torch.Generator().manual_seed(0)
    bits[:, 7] = bits[:, 8]
    drawn = torch.stack([covariance(bits, equal(200), 10, g) for _ in range(3000)])
    assert drawn.mean().item() == pytest.approx(covariance(bits, equal(200)).item(), rel=0.02)
    assert drawn.std() > 0


def test_independent_bits_have_a_floor():
    """256 * 255 pairs, each with mean |cov| = 1/4 sqrt(2 / (pi 512)): 575."""
    found = [covariance(random_bits(512, 256, seed=s), equal(512)).item() for s in range(3)]
    assert sum(found) / 3 == pytest.approx(575, rel=0.05)


def test_one_row_has_no_covariance():
    bits = random_bits(1, 5).requires_grad_()
    assert covariance(bits, equal(1)).item() == 0
