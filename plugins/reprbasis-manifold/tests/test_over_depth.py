"""The measures on clouds and codes whose sharing is known."""

import pytest
import torch
from reprbasis_manifold.over_depth import captured, pairs, spread, stays, strongest

from reprbasis.kits.subspaces import covariance, haar, principal

LAYERS = 5


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


def test_pairs_go_both_ways():
    assert list(pairs(4, 2)) == [(0, 2), (2, 0), (1, 3), (3, 1)]
    assert list(pairs(2, 2)) == []


def share(x, frame):
    return float(captured(x, frame).sum() / x.square().sum())


def test_one_manifold_is_captured_from_anywhere_and_two_are_not(draw):
    frame = haar(32, draw).float()
    same = [torch.randn(500, 4, generator=draw) @ frame[:, :4].T for _ in range(2)]
    other = torch.randn(500, 4, generator=draw) @ frame[:, 10:14].T
    found = principal(covariance(same[0]))[0][:, :4].float()
    assert share(same[1], found) == pytest.approx(1, abs=1e-4)
    assert share(other, found) == pytest.approx(0, abs=1e-4)
    assert share(torch.randn(4000, 32, generator=draw), found) == pytest.approx(4 / 32, abs=0.02)


def test_what_stays():
    first = torch.tensor([[True, True, False], [False, False, False]])
    later = torch.tensor([[True, False, True], [True, True, True]])
    kept, there = stays(first, later)
    assert kept.tolist() == [1, 0]
    assert there.tolist() == [2, 0]


def codes(rows):
    """One latent at one token with these activations over the layers."""
    return [torch.tensor([[float(v)]]) for v in rows]


@pytest.mark.parametrize(("rows", "variance"), [
    ([0, 0, 3, 0, 0], 0.0), ([1] * LAYERS, (LAYERS**2 - 1) / 12), ([2, 0, 0, 0, 2], ((LAYERS - 1) / 2) ** 2),
    ([0] * LAYERS, 0.0)])
def test_layer_variance_of_known_latents(rows, variance):
    one, mass, every = spread(codes(rows))
    assert float(mass) == sum(rows)
    assert float(every) == pytest.approx(variance, abs=1e-5)
    assert float(one) == pytest.approx(variance * sum(rows), abs=1e-4)


def test_a_latent_that_moves_with_the_token_is_spread_over_tokens_only():
    layers = [torch.zeros(LAYERS, 1) for _ in range(LAYERS)]
    for i in range(LAYERS):
        layers[i][i] = 1.0  # token i at layer i
    one, _, every = spread(layers)
    assert float(one.sum()) == pytest.approx(0, abs=1e-5)
    assert float(every) == pytest.approx((LAYERS**2 - 1) / 12, abs=1e-5)


def test_shuffling_tokens_within_layers_breaks_what_stays(draw):
    on = torch.rand(400, 50, generator=draw) < 0.1
    kept, there = stays(on, on)
    mixed, _ = stays(on, on[torch.randperm(400, generator=draw)])
    assert torch.equal(kept, there)
    assert float(mixed.sum() / there.sum()) == pytest.approx(0.1, abs=0.02)


def test_strongest():
    assert strongest(torch.tensor([1.0, 5.0, 3.0]), 2).tolist() == [False, True, True]
