"""The learner finds planted atoms through the core's training loop."""

import torch
from reprbasis_relu.config import ReLUConfig
from reprbasis_relu.learner import ReLULearner

from reprbasis.runtime.fit import fit
from reprbasis.sites import Site
from reprbasis.testing.activations import activations_of
from reprbasis.testing.planted import Planted, mmcs

SITE = Site("resid", 0)


def test_recovers_planted_atoms(tmp_path):
    planted = Planted.make(d=32, atoms=64, l0=4)
    x = planted.rows(40_000, torch.Generator().manual_seed(1)).x
    learner = ReLULearner(ReLUConfig(width=128, l1=0.1))
    basis = fit(learner, activations_of({SITE: x}, tmp_path), rows=2500 * 256, batch=256, capabilities=frozenset())
    z = basis.encode(SITE, planted.rows(4096, torch.Generator().manual_seed(2)).x)
    assert mmcs(planted.atoms, basis.directions(SITE)[(z > 0).any(0)]) >= 0.93
    assert 10 <= float((z > 0).sum(1).float().mean()) <= 30


def test_the_threshold_stays_zero(tmp_path):
    x = Planted.make(d=8, atoms=12, l0=2).rows(2048, torch.Generator().manual_seed(1)).x
    basis = fit(ReLULearner(ReLUConfig(width=16)), activations_of({SITE: x}, tmp_path), rows=4096, batch=256,
                capabilities=frozenset())
    assert not basis.dictionary.threshold.any()
    norms = basis.dictionary.directions().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(16))
