"""Recovery of planted atoms, the shipped forms, and the decoder kernel."""

import pytest
import torch
from reprbasis_topk.config import BatchTopKConfig, TopKConfig
from reprbasis_topk.learner import BatchTopKLearner, TopKLearner

from reprbasis.interfaces.learner import StepInfo
from reprbasis.kits.affine import ThresholdDictionary
from reprbasis.runtime.fit import fit
from reprbasis.sites import Site
from reprbasis.testing.activations import activations_of
from reprbasis.testing.planted import Planted, mmcs

SITE = Site("resid", 0)
PLANTED = Planted.make(d=32, atoms=64, l0=4)
FRESH = PLANTED.rows(8192, torch.Generator().manual_seed(2)).x


def learn(learner, folder, steps):
    x = PLANTED.rows(40_000, torch.Generator().manual_seed(1)).x
    return fit(learner, activations_of({SITE: x}, folder), rows=steps * 256, batch=256, capabilities=frozenset())


def test_topk_recovers_planted_atoms(tmp_path):
    basis = learn(TopKLearner(TopKConfig(width=128, k=4)), tmp_path, 3000)
    z = basis.encode(SITE, FRESH)
    assert mmcs(PLANTED.atoms, basis.directions(SITE)[(z > 0).any(0)]) >= 0.97
    assert int((z > 0).sum(1).max()) <= 4


def test_batchtopk_ships_thresholds_with_the_same_l0(tmp_path):
    basis = learn(BatchTopKLearner(BatchTopKConfig(width=128, k=4)), tmp_path, 2000)
    assert isinstance(basis.dictionary, ThresholdDictionary)
    z = basis.encode(SITE, FRESH)
    assert float((z > 0).sum(1).float().mean()) == pytest.approx(4, rel=0.1)
    one = torch.cat([basis.encode(SITE, row[None]) for row in FRESH[:16]])
    assert torch.equal(one > 0, z[:16] > 0)  # a row's codes do not depend on the others


def test_aux_loss_reaches_dead_latents_only():
    """Half of the latents can hardly fire: the auxiliary term moves their encoders, and no others."""
    learner = TopKLearner(TopKConfig(width=64, k=4))
    g = torch.Generator().manual_seed(0)
    dictionary = learner.start(PLANTED.stats(g), g)
    dictionary.b_enc.data[1::2] += 50.0  # the others take all places
    dictionary.state.silent[::2] = 10**9
    learner.loss(dictionary, PLANTED.rows(512, g), StepInfo(0, 10, 0, g))["aux"].backward()
    grad = dictionary.W_enc.grad.norm(dim=1)
    assert grad[::2].min() > 1e-8
    assert not grad[1::2].any()


def test_a_latent_is_dead_after_its_share_of_the_rows():
    learner = TopKLearner(TopKConfig(width=64, k=4, dead_after=0.5))
    g = torch.Generator().manual_seed(0)
    dictionary = learner.start(PLANTED.stats(g), g)
    dictionary.b_enc.data[7] = -1e3
    for step in range(10):
        info = StepInfo(step, 10, step * 64, g)
        terms = learner.loss(dictionary, PLANTED.rows(64, g), info)
        assert dictionary.state.silent[7] == (step + 1) * 64
        assert (terms["aux"].item() > 0) == (float(info.scratch["dead"]) > 0)
    assert float(info.scratch["dead"]) > 0


def test_k_defaults_to_the_width():
    g = torch.Generator().manual_seed(0)
    for d, k in ((32, 4), (128, 8)):
        planted = Planted.make(d=d, atoms=16, l0=2)
        assert int(TopKLearner(TopKConfig(width=64)).start(planted.stats(g), g).k) == k


def test_running_threshold_is_fp64_and_starts_at_the_first_batch():
    learner = BatchTopKLearner(BatchTopKConfig(width=64, k=4))
    g = torch.Generator().manual_seed(0)
    dictionary = learner.start(PLANTED.stats(g), g)
    rows = PLANTED.rows(256, g)
    learner.loss(dictionary, rows, StepInfo(0, 10, 0, g))
    h = rows.x @ dictionary.W_enc.T + dictionary.b_enc
    smallest = h.detach().reshape(-1).topk(4 * 256).values.min()
    threshold = dictionary.state["threshold"]
    assert threshold.dtype == torch.float64
    assert float(threshold) == pytest.approx(float(smallest), rel=1e-5)


@pytest.mark.parametrize("keep", ["codes", "norms"])
@pytest.mark.parametrize("learner", [TopKLearner(TopKConfig(width=64, k=4)), BatchTopKLearner(BatchTopKConfig(width=64, k=4))])
def test_normalisers_fold_in_exactly(learner, keep):
    """A dictionary for x' = (x - mean) * scale, folded, selects the same latents of raw x and reconstructs it as well."""
    g = torch.Generator().manual_seed(0)
    dictionary = learner.start(PLANTED.stats(g), g)
    learner.loss(dictionary, PLANTED.rows(256, g), StepInfo(0, 10, 0, g))  # gives BatchTopK its threshold
    shipped = learner.finish(dictionary, PLANTED.stats(g)).double()
    x, mean, scale = PLANTED.rows(64, g).x.double(), torch.randn(32, generator=g).double(), 7.5
    raw = x / scale + mean
    with torch.no_grad():
        z, folded = shipped.encode(x), shipped.folded(scale, mean, keep=keep)
        torch.testing.assert_close(folded.encode(raw), z if keep == "codes" else z / scale, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(folded(raw), shipped.decode(z) / scale + mean, rtol=1e-10, atol=1e-10)
