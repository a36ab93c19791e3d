"""The learner finds planted atoms through the core's training loop."""

import torch
from reprbasis_jumprelu.config import JumpReLUConfig
from reprbasis_jumprelu.learner import JumpReLULearner

from reprbasis.runtime.fit import fit
from reprbasis.sites import Site
from reprbasis.testing.activations import activations_of
from reprbasis.testing.planted import Planted, mmcs

SITE = Site("resid", 0)


def test_recovers_planted_atoms_at_the_target_l0(tmp_path):
    planted = Planted.make(d=32, atoms=64, l0=4)
    x = planted.rows(40_000, torch.Generator().manual_seed(1)).x
    learner = JumpReLULearner(JumpReLUConfig(width=128))
    basis = fit(learner, activations_of({SITE: x}, tmp_path), rows=4000 * 256, batch=256, capabilities=frozenset())
    fresh = planted.rows(8192, torch.Generator().manual_seed(2)).x
    with torch.no_grad():
        z = basis.encode(SITE, fresh)
        error = (fresh - basis.decode(SITE, z)).square().sum() / (fresh - fresh.mean(0)).square().sum()
    alive = (z > 0).any(0)
    assert mmcs(planted.atoms, basis.directions(SITE)[alive]) >= 0.97
    assert 3.5 <= float((z > 0).sum(1).float().mean()) <= 5
    assert float(error) < 0.12
