"""Gated codes against their definition, the shipped form, folding, and recovery of planted atoms."""

import pytest
import torch
from reprbasis_gated.config import GatedConfig
from reprbasis_gated.learner import GatedDictionary, GatedLearner

from reprbasis.interfaces.learner import StepInfo
from reprbasis.kits import sparse
from reprbasis.runtime.fit import fit
from reprbasis.sites import Site
from reprbasis.testing.activations import activations_of
from reprbasis.testing.planted import Planted, mmcs

SITE = Site("resid", 0)
N, D, K = 64, 10, 40


def random(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dictionary():
    rows = torch.nn.functional.normalize(random(K, D, seed=3), dim=1)
    out = GatedDictionary(random(K, D, seed=1), random(K, seed=2), rows, random(D, seed=4))
    out.r_mag.data, out.b_mag.data = 0.3 * random(K, seed=5), random(K, seed=6)
    return out


def test_codes_by_definition():
    d, x = dictionary(), random(N, D)
    with torch.no_grad():
        gate = x @ d.W_enc.T + d.b_enc
        size = (x @ (d.r_mag.exp()[:, None] * d.W_enc).T + d.b_mag).relu()
        torch.testing.assert_close(d.encode(x), (gate > 0) * size, rtol=0, atol=1e-12)
        assert ((gate > 0) & (size == 0)).any()  # both paths decide
        assert ((gate <= 0) & (size > 0)).any()


def test_the_shipped_form_gives_the_same_codes():
    d, x = dictionary(), random(N, D)
    with torch.no_grad():
        torch.testing.assert_close(d.with_thresholds().encode(x), d.encode(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(d.with_thresholds()(x), d(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("keep", ["codes", "norms"])
@pytest.mark.parametrize("shipped", [False, True])
def test_fold_is_exact(keep, shipped):
    d, scale, mean, raw = dictionary(), 7.5, random(D, seed=8), random(N, D) / 7.5
    form = d.with_thresholds() if shipped else d
    with torch.no_grad():
        z = form.encode((raw - mean) * scale)
        folded = form.folded(scale, mean, keep=keep)
        torch.testing.assert_close(folded.encode(raw), z if keep == "codes" else z / scale, rtol=0, atol=1e-10)
        torch.testing.assert_close(folded(raw), form.decode(z) / scale + mean, rtol=0, atol=1e-10)


def terms(dense, monkeypatch, dtype=torch.float64):
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 0.0 if dense else 0.9)
    planted, g = Planted.make(16, 24, 2), torch.Generator().manual_seed(0)
    learner = GatedLearner(GatedConfig(width=48, warmup=0))
    d = learner.start(planted.stats(g), g).to(dtype)
    d.b_mag.data += 0.1
    d.state.silent[::3] = 10**9
    rows = planted.rows(64, g)
    rows = type(rows)(**{**vars(rows), "x": rows.x.to(dtype)})
    found = learner.loss(d, rows, StepInfo(1, 10, 0, g))
    torch.stack(list(found.values())).sum().backward()
    return found, {n: p.grad for n, p in d.named_parameters()}


def test_sparse_and_dense_give_the_same_gradients(monkeypatch):
    (left, left_grads), (right, right_grads) = terms(True, monkeypatch), terms(False, monkeypatch)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-12, atol=1e-12)
    for name, grad in left_grads.items():
        torch.testing.assert_close(right_grads[name], grad, rtol=1e-10, atol=1e-12, msg=name)


def test_terms_equal_their_definition(monkeypatch):
    """Plain autograd on the formulas of the module; the gate's error reaches neither decoder nor its bias."""
    planted, g = Planted.make(16, 24, 2), torch.Generator().manual_seed(0)
    learner = GatedLearner(GatedConfig(width=48, warmup=0, aux=0, l1=0.3))
    d = learner.start(planted.stats(g), g).double()
    x = planted.rows(64, g).x.double()
    rows = planted.rows(64, g)
    rows = type(rows)(**{**vars(rows), "x": x})
    found = learner.loss(d, rows, StepInfo(1, 10, 0, g))
    p = x @ d.W_enc.T + d.b_enc
    z = torch.where(p > 0, (d.r_mag.exp() * (x @ d.W_enc.T) + d.b_mag).relu(), 0)
    v = d.state.variance
    want = {"reconstruction": (x - z @ d.W_dec - d.b_dec).square().sum(1).mean() / v,
            "l1": 0.3 * p.relu().sum(1).mean() / v.sqrt(),
            "gate": (x - p.relu() @ d.W_dec.detach() - d.b_dec.detach()).square().sum(1).mean() / v}
    parameters = dict(d.named_parameters())
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)
        got, expected = (torch.autograd.grad(t, list(parameters.values()), retain_graph=True, allow_unused=True)
                         for t in (found[name], value))
        for key, a, b in zip(parameters, got, expected, strict=True):
            a, b = (torch.zeros_like(parameters[key]) if t is None else t for t in (a, b))
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=f"{name} {key}")


def test_recovers_planted_atoms(tmp_path):
    planted = Planted.make(d=32, atoms=64, l0=4)
    x = planted.rows(40_000, torch.Generator().manual_seed(1)).x
    learner = GatedLearner(GatedConfig(width=128, l1=0.4))
    basis = fit(learner, activations_of({SITE: x}, tmp_path), rows=2500 * 256, batch=256, capabilities=frozenset())
    fresh = planted.rows(4096, torch.Generator().manual_seed(2)).x
    z = basis.encode(SITE, fresh)
    assert mmcs(planted.atoms, basis.directions(SITE)[(z > 0).any(0)]) >= 0.97
    assert 3.5 <= float((z > 0).sum(1).float().mean()) <= 8
    # magnitudes do not shrink: the best common factor on the reconstruction is 1
    guess = basis.decode(SITE, z) - x.mean(0)
    assert float((guess * (fresh - x.mean(0))).sum() / guess.square().sum()) == pytest.approx(1, abs=0.03)


def test_both_forms_are_restored_exactly():
    d = dictionary()
    for form in (d, d.with_thresholds()):
        again = GatedLearner(GatedConfig(width=K)).restore(D, form.state_dict())
        assert type(again) is type(form)
        assert all(torch.equal(again.state_dict()[n], t) for n, t in form.state_dict().items())
