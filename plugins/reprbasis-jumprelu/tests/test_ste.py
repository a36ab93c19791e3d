"""Straight-through gradients against their closed form, and the edges of the window."""

import pytest
import torch
from reprbasis_jumprelu.config import JumpReLUConfig
from reprbasis_jumprelu.learner import JumpReLULearner
from reprbasis_jumprelu.ste import jump, step

from reprbasis.interfaces.learner import StepInfo
from reprbasis.kits.affine import Weighted
from reprbasis.kits.sparse import Scratch, codes_above
from reprbasis.testing.planted import Planted

B, D, K, EPS, PRICE = 200, 6, 12, 0.05, 0.3


def random(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gradients_equal_the_closed_form():
    """loss = mean |x^ - x|^2 + price * L0, fp64, against the formulas of the paper written out."""
    x, w_enc, b, w_dec = random(B, D), random(K, D, seed=1), random(K, seed=2), random(K, D, seed=3)
    theta = random(K, seed=4).abs()
    theta[0] = 1e3  # no sample in its window
    leaves = [t.requires_grad_() for t in (w_enc, b, w_dec, theta)]
    codes = codes_above(x, w_enc, b, theta.detach() - 0.51 * EPS, Scratch())
    z = jump(codes.h, codes.at(theta), EPS)
    l0 = codes.row_sum(step(codes.h, codes.at(theta), EPS))
    loss = (codes.decode(z, w_dec) - x).square().sum() / B + PRICE * l0.mean()
    found = torch.autograd.grad(loss, leaves)
    with torch.no_grad():
        h = x @ w_enc.T + b
        active = (h > theta).double()
        window = ((h - theta).abs() < EPS / 2).double() / EPS
        residual = (h * active) @ w_dec - x
        back = 2 / B * residual @ w_dec.T
        gh = back * active
        want = (gh.T @ x, gh.sum(0), 2 / B * (h * active).T @ residual,
                (window * (-theta * back - PRICE / B)).sum(0))
    for name, a, e in zip(("W_enc", "b_enc", "W_dec", "theta"), found, want, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-12, msg=name)
    assert found[3][0] == 0
    assert (found[3][1:] != 0).any()


def test_the_step_sends_nothing_to_the_pre_activation():
    h, theta = random(50).requires_grad_(), torch.zeros(50, dtype=torch.float64, requires_grad=True)
    step(h, theta, 10.0).sum().backward()
    assert h.grad is None
    torch.testing.assert_close(theta.grad, torch.full_like(theta, -0.1))


def test_edges():
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    for value, code, inside in ((1.0, 0.0, 1), (1.25, 1.25, 0), (0.75, 0.0, 0), (1.125, 1.125, 1), (0.875, 0.0, 1)):
        h = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        out = jump(h, theta, 0.5)
        assert out.item() == code
        g_theta, g_h = torch.autograd.grad(out.sum(), (theta, h))
        assert g_theta.item() == -1.0 / 0.5 * inside
        assert g_h.item() == (1.0 if value > 1.0 else 0.0)


def test_threshold_zero_is_relu():
    h, theta = random(100), torch.zeros(100, dtype=torch.float64, requires_grad=True)
    out = jump(h, theta, EPS)
    assert torch.equal(out, h.relu())
    assert (torch.autograd.grad(out.sum(), theta)[0] == 0).all()
    g, = torch.autograd.grad(step(h, theta, EPS).sum(), theta)
    assert torch.equal(g, -((h.abs() < EPS / 2).double() / EPS))


@pytest.mark.parametrize("sparsity", ["target", "l0", "tanh"])
def test_thresholds_move_and_stay_positive(sparsity):
    learner = JumpReLULearner(JumpReLUConfig(width=64, sparsity=sparsity, threshold=0.0, warmup=0))
    planted, g = Planted.make(), torch.Generator().manual_seed(0)
    dictionary = learner.start(planted.stats(g), g)
    info = StepInfo(1, 100, 0, g)
    terms = learner.loss(dictionary, planted.rows(256, g), info)
    sum(terms.values()).backward()
    if sparsity != "tanh":  # at threshold 0 the code is continuous: only the step feels the threshold
        assert (dictionary.threshold.grad < 0).any()
    dictionary.threshold.data.sub_(1.0)
    learner.after_step(dictionary, info)
    assert (dictionary.threshold >= 0).all()


def test_site_limit_pulls_the_dense_site_only():
    """Equal L0 everywhere at the target costs nothing; the same mean L0 on one site alone does."""
    learner = JumpReLULearner(JumpReLUConfig(width=8, target_l0=4.0, site_limit=1.5))
    share, site, info = torch.full((4,), 0.25), torch.tensor([0, 1, 2, 3]), StepInfo(0, 1, 0, torch.Generator())
    batch = Weighted(torch.zeros(4, 32), share, site, 4)
    assert learner._excess(torch.full((4,), 4.0), batch, info) == 0
    l0 = torch.tensor([16.0, 0.0, 0.0, 0.0], requires_grad=True)
    cost = learner._excess(l0, batch, info)
    assert cost.item() == pytest.approx((16 / 6 - 1) ** 2 / 4)
    cost.backward()
    assert l0.grad[0] > 0
    assert not l0.grad[1:].any()
