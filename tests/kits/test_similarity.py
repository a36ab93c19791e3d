"""Figures of similarity against closed forms and their values by chance."""

import pytest
import torch

from reprbasis.kits.similarity import centred_cosine, cka, mutual_knn, neighbours, permuted_within, relative, retrieval


def gaussians(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def rotation(d):
    return torch.linalg.qr(gaussians(d, d, 9)).Q


def test_a_rotated_copy_is_the_same_space():
    a = gaussians(500, 24, 0)
    b = a @ rotation(24)
    assert mutual_knn(a, b).mean() > 0.99
    assert cka(a, b) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(relative(a, a[:50]), relative(b, b[:50]), atol=1e-5)
    assert bool((retrieval(a @ rotation(24), b) == 0).all())


@pytest.mark.parametrize("n", [64, 256, 1024])
def test_independent_spaces_are_at_chance(n):
    """Biased CKA would give .65 at n = 64, d = 128."""
    a, b = gaussians(n, 128, 0), gaussians(n, 128, 1)
    assert abs(cka(a, b)) < 0.05
    chance = 10 / (n - 1)
    assert float(mutual_knn(a, b).mean()) == pytest.approx(chance, abs=4 * (chance / (10 * n)) ** 0.5 + 0.003)
    ranks = retrieval(a, b).float()
    assert float(ranks.mean()) == pytest.approx((n - 1) / 2, rel=0.2)


@pytest.mark.parametrize(("ratio", "uncentred"), [(0.0, 0.0), (0.5, 0.20), (1.0, 0.50), (3.0, 0.90)])
def test_a_common_mean_alone_looks_like_similarity(ratio, uncentred):
    x, y = gaussians(2000, 64, 0) + ratio, gaussians(2000, 64, 1) + ratio
    zero = torch.zeros(64)
    assert float(centred_cosine(x, y, zero).mean()) == pytest.approx(uncentred, abs=0.02)
    assert abs(float(centred_cosine(x, y, torch.full((64,), ratio)).mean())) < 0.02


def test_neighbours_by_hand_across_blocks():
    x = gaussians(2500, 8, 3)
    unit = torch.nn.functional.normalize(x, dim=-1)
    for row in (0, 1023, 1024, 2499):
        scores = unit @ unit[row]
        scores[row] = -2
        assert set(neighbours(x, 3)[row].tolist()) == set(scores.topk(3).indices.tolist())


def test_permutations_keep_the_label():
    labels = torch.arange(100) % 7
    order = permuted_within(labels, torch.Generator().manual_seed(0))
    assert torch.equal(labels[order], labels)
    assert sorted(order.tolist()) == list(range(100))
    assert (order != torch.arange(100)).float().mean() > 0.8
