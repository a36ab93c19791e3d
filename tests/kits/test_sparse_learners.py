"""Every learner that trains on sparse kernels: the same loss terms and gradients, of everything, as on dense matrices."""

from dataclasses import replace

import pytest
import torch

import reprbasis as rb
from reprbasis.interfaces.learner import StepInfo
from reprbasis.kits import sparse
from reprbasis.testing.planted import Planted

PLANTED = Planted.make(16, 24, 2)
LEARNERS = {
    "relu": ("relu", {"warmup": 0}),
    "jumprelu target": ("jumprelu", {"target_l0": 3, "revive": 0.1}),
    "jumprelu l0": ("jumprelu", {"sparsity": "l0", "target_l0": 3}),
    "jumprelu tanh": ("jumprelu", {"sparsity": "tanh", "target_l0": 3}),
    "topk": ("topk", {"k": 3}),
    "batchtopk": ("batchtopk", {"k": 3}),
    "gated": ("gated", {"warmup": 0}),
    "matryoshka": ("matryoshka", {"k": 3}),
}


def step(name, dtype, dense, monkeypatch):
    """Terms, gradients and logged values of one step from the start, with a third of the latents dead and uneven weights."""
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 0.0 if dense else 0.95)
    use, options = LEARNERS[name]
    generator = torch.Generator().manual_seed(0)
    learner = rb.create("learner", use, width=48, **options)
    dictionary = learner.start(PLANTED.stats(generator), generator).to(dtype)
    dictionary.state.silent[::3] = 10**9
    rows = PLANTED.rows(96, generator)
    rows = replace(rows, x=rows.x.to(dtype), weight=torch.linspace(0.2, 1, 96))
    info = StepInfo(5, 10, 0, generator)
    terms = learner.loss(dictionary, rows, info)
    torch.stack([t.to(dtype) for t in terms.values()]).sum().backward()
    grads = {n: p.grad for n, p in dictionary.named_parameters() if p.requires_grad}
    return {k: v.detach() for k, v in terms.items()}, grads, dict(info.scratch)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", LEARNERS)
def test_sparse_equals_dense(name, dtype, tolerance, monkeypatch):
    dense, some = (step(name, dtype, d, monkeypatch) for d in (True, False))
    assert any(bool(g.any()) for g in dense[1].values())
    for left, right in zip(dense, some, strict=True):
        assert left.keys() == right.keys()
        for key, value in left.items():
            torch.testing.assert_close(right[key], value, rtol=tolerance, atol=tolerance * float(value.abs().max() + 1e-6),
                                       msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", LEARNERS)
def test_bfloat16_trains(name, monkeypatch):
    """Short floats run through the same step; terms agree to their precision, and a threshold's gradient has 32 bits."""
    short, full = (step(name, dtype, False, monkeypatch) for dtype in (torch.bfloat16, torch.float32))
    assert float(short[0]["reconstruction"]) == pytest.approx(float(full[0]["reconstruction"]), rel=0.05)
    assert all(torch.isfinite(g).all() for g in short[1].values())
    assert {n: g.dtype for n, g in short[1].items()} == {
        n: torch.float32 if n == "threshold" else torch.bfloat16 for n in short[1]}
