"""The sparse kernels equal the naive dense formulas, values and gradients."""

import pytest
import torch

from reprbasis.kits import sparse
from reprbasis.kits.sparse import DenseCodes, Scratch, SparseCodes, batch_topk_mask, codes_above, codes_batch_topk, codes_topk
from reprbasis.runtime import products

N, D, K = 48, 12, 80
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def problem(dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    make = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64).to(dtype).requires_grad_()  # noqa: E731
    return {"x": make(N, D), "W_enc": make(K, D), "b_enc": make(K), "W_dec": make(K, D), "p": make(K)}


def grads(loss, tensors):
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


def naive(t, mask):
    """A loss that uses everything a learner may use, written densely."""
    h = t["x"] @ t["W_enc"].T + t["b_enc"]
    z = torch.where(mask(h), h, 0.0)
    value = (z @ t["W_dec"] - t["x"].detach()).square().sum() / N
    return value + (z * t["p"]).sum(1).square().mean(), z


def ours(t, codes):
    z = codes.kept(codes.h)
    value = (codes.decode(z, t["W_dec"]) - t["x"].detach()).square().sum() / N
    return value + codes.row_sum(z * codes.at(t["p"])).square().mean(), z


def exact_topk(h, k):
    return torch.zeros_like(h, dtype=torch.bool).scatter_(1, h.topk(k, dim=1).indices, True) & (h > 0)


def exact_batch_topk(h, n):
    flat = torch.zeros(h.numel(), dtype=torch.bool)
    flat[h.reshape(-1).topk(n).indices] = True
    return flat.view_as(h) & (h > 0)


CASES = {
    "above": (lambda t, s: codes_above(t["x"], t["W_enc"], t["b_enc"], 4.0, s), lambda h: h > 4.0),
    "above-per-latent": (lambda t, s: codes_above(t["x"], t["W_enc"], t["b_enc"], 4 + t["p"].detach(), s), None),
    "topk": (lambda t, s: codes_topk(t["x"], t["W_enc"], t["b_enc"], 5, s), lambda h: exact_topk(h, 5)),
    "batch-topk": (lambda t, s: codes_batch_topk(t["x"], t["W_enc"], t["b_enc"], 5, s),
                   lambda h: exact_batch_topk(h, 5 * N)),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_plain_autograd(case, dense, dtype, monkeypatch):
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 0.0 if dense else 0.5)
    t = problem(dtype)
    make, mask = CASES[case]
    codes = make(t, Scratch())
    assert isinstance(codes, DenseCodes if dense else SparseCodes)
    want, _ = naive(t, mask or (lambda h: h > 4 + t["p"].detach()))
    got, _ = ours(t, codes)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    expected, found = grads(want, t), grads(got, t)
    for name in t:
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_groups_add_up_to_the_whole_and_stand_alone(case, dense, dtype, monkeypatch):
    """Each group equals its slice decoded densely, with gradients of codes, encoder and decoder."""
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 0.0 if dense else 0.5)
    t, sizes, tolerance = problem(dtype), [7, 1, 32, 40], TOLERANCE[dtype]
    make, mask = CASES[case]
    codes = make(t, Scratch())
    z = codes.kept(codes.h)
    parts = codes.decode_groups(z, t["W_dec"], sizes)
    torch.testing.assert_close(sum(parts), codes.decode(z, t["W_dec"]), rtol=tolerance, atol=10 * tolerance)
    _, whole = naive(t, mask or (lambda h: h > 4 + t["p"].detach()))
    slices = [a @ b for a, b in zip(whole.split(sizes, 1), t["W_dec"].split(sizes), strict=True)]
    weights = [0.5, 2.0, -1.0, 3.0]  # so that no group can stand in for another
    got, want = (sum(w * p.square().sum() for w, p in zip(weights, ps, strict=True)) for ps in (parts, slices))
    inputs = {k: v for k, v in t.items() if k != "p"}
    for name, expected in grads(want, inputs).items():
        found = torch.autograd.grad(got, t[name], retain_graph=True)[0]
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()), msg=name)


def test_empty_codes_give_zero():
    t = problem(torch.float32)
    codes = codes_above(t["x"], t["W_enc"], t["b_enc"], 1e9, Scratch())
    assert codes.h.shape == (0,)
    assert not codes.fired(codes.h).any()
    loss, _ = ours(t, codes)
    assert all((g == 0).all() for name, g in grads(loss, t).items() if name in ("W_enc", "b_enc", "W_dec"))


@pytest.mark.parametrize("case", CASES)
def test_fired_marks_latents_with_a_code(case, monkeypatch):
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 0.5)
    t = problem(torch.float32)
    codes = CASES[case][0](t, Scratch())
    z = codes.kept(codes.h)
    dense = torch.zeros(N, K)
    dense[codes.pattern.rows, codes.pattern.cols] = z.detach()
    assert torch.equal(codes.fired(z), (dense > 0).any(0))


@pytest.mark.parametrize("shape", ["spread", "one row holds all", "few positive", "ties"])
def test_batch_topk_is_exact(shape):
    g = torch.Generator().manual_seed(0)
    h = torch.randn(256, 40, generator=g)
    if shape == "one row holds all":  # the sample of rows misses it, so the estimate must be corrected
        h = h.abs().neg()
        h[3:30] = 5 + torch.rand(27, 40, generator=g)
    elif shape == "few positive":
        h = h - 2.5
    elif shape == "ties":
        h = (h * 2).round()
    for count in (1, 300, 1000):
        mask = batch_topk_mask(h, count)
        assert int(mask.sum()) == min(count, int((h > 0).sum()))
        want = h.reshape(-1).topk(int(mask.sum())).values
        assert torch.equal(h[mask].sort(descending=True).values, want)


def test_overwritten_scratch_is_an_error_not_a_wrong_gradient():
    t, scratch = problem(torch.float32), Scratch()
    first = codes_above(t["x"], t["W_enc"], t["b_enc"], -1e9, scratch)
    loss = first.h.square().sum()
    codes_above(t["x"], t["W_enc"], t["b_enc"], -1e9, scratch)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        loss.backward()


def test_scratch_is_reused_and_grows():
    scratch, like = Scratch(), torch.zeros(1)
    a = scratch.take(4, 5, like)
    assert scratch.take(3, 5, like).data_ptr() == a.data_ptr()
    assert scratch.take(40, 5, like).shape == (40, 5)
    assert scratch.take(2, 2, like.double()).dtype == torch.float64


@pytest.mark.parametrize("case", CASES)
def test_short_products_choose_entries_and_leave_their_values_exact(case, monkeypatch):
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 0.5)
    t = problem(torch.float32)
    with products.using("bfloat16"):
        short = CASES[case][0](t, Scratch())
    long = CASES[case][0](t, Scratch())
    chosen, exact = (c.pattern.rows * K + c.pattern.cols for c in (short, long))
    assert torch.isin(chosen, exact).float().mean() > 0.97
    assert abs(len(chosen) - len(exact)) <= 0.03 * len(exact)
    h = (t["x"] @ t["W_enc"].T + t["b_enc"]).flatten()
    assert torch.allclose(short.h, h[chosen], atol=1e-5)


def test_short_products_of_dense_codes_have_all_gradients(monkeypatch):
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 0.0)
    t, found = problem(torch.float32), []
    for name in ("float32", "bfloat16"):
        with products.using(name):
            found.append(grads(ours(t, CASES["above"][0](t, Scratch()))[0], t))
    for name, gradient in found[0].items():
        assert gradient.dtype == found[1][name].dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), found[1][name].flatten(), dim=0) > 0.99, name
        assert not torch.equal(gradient, found[1][name]), name
