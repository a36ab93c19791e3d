"""Held-out figures of maps, each beside its controls."""

import pytest
import torch

import reprbasis as rb
from reprbasis.errors import DataError
from reprbasis.kits.alignment import deciles, judge, verdict, without_map


def gaussians(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def get(found, name, condition):
    return next(m for m in found if m.name == name and m.condition == condition)


@pytest.fixture
def world():
    """Rows = token vector + context; the copy is rotated."""
    vocabulary = 2 * gaussians(40, 24, 0)
    tokens = (gaussians(3000, 1, 1).abs()[:, 0] * 12).long().clamp_max(39)
    a = vocabulary[tokens] + gaussians(3000, 24, 2) + 3
    turn = torch.linalg.qr(gaussians(24, 24, 3)).Q
    return a, a @ turn + 0.1 * gaussians(3000, 24, 4), tokens, torch.arange(3000) // 50


def test_a_rotated_copy_beats_every_control(world):
    a, b, tokens, group = world
    held = group % 5 == 4
    alignment, found = judge(rb.create("aligner", "procrustes"), (a[~held], b[~held]), (a[held], b[held]), group[held],
                             tokens=tokens[~held])
    assert {m.condition for m in found} == {"map", "permuted", "same-frequency", "random", "identity", "train"}
    assert get(found, "cosine", "map").value > 0.99
    assert get(found, "retrieval@1", "map").value > 0.95
    for control in ("permuted", "same-frequency", "random", "identity"):
        assert get(found, "cosine", control).high < get(found, "cosine", "map").low
        assert get(found, "retrieval@1", control).value < 0.25  # few tokens: many have the right partner by chance
    assert verdict(found).startswith("aligned")
    assert alignment.details["held_out"]["cosine"] == get(found, "cosine", "map").value


def test_frequency_alone_is_seen_as_such():
    """Two spaces that share how often a token occurs and nothing else: the same-frequency control does as well."""
    tokens = (gaussians(3000, 1, 1).abs()[:, 0] * 12).long().clamp_max(39)
    level = deciles(tokens).float()[:, None]
    a = level * gaussians(1, 24, 5) + 0.1 * gaussians(3000, 24, 2)
    b = level * gaussians(1, 24, 6) + 0.1 * gaussians(3000, 24, 3)
    group = torch.arange(3000) // 50
    held = group % 5 == 4
    _, found = judge(rb.create("aligner", "ridge"), (a[~held], b[~held]), (a[held], b[held]), group[held], tokens=tokens[~held])
    assert get(found, "r2", "map").value > 0.9
    assert get(found, "r2", "permuted").value < 0.1
    assert get(found, "r2", "same-frequency").value > 0.9
    assert verdict(found).startswith("no alignment shown")
    assert "same-frequency" in verdict(found)


def test_independent_spaces_are_not_aligned():
    a, b, group = gaussians(1500, 32, 0), gaussians(1500, 32, 1), torch.arange(1500) // 30
    held = group % 5 == 4
    _, found = judge(rb.create("aligner", "affine"), (a[~held], b[~held]), (a[held], b[held]), group[held])
    assert verdict(found).startswith("no alignment shown")
    free = without_map(a, b, group)
    assert abs(get(free, "cka", "map").value) < 0.02
    assert get(free, "mutual-knn@10", "map").value == pytest.approx(10 / 1499, abs=0.003)
    copy = without_map(a, a @ torch.linalg.qr(gaussians(32, 32, 2)).Q, group)
    assert get(copy, "cka", "map").value == pytest.approx(1, abs=1e-4)
    assert get(copy, "mutual-knn@10", "permuted").value < 0.02


def test_too_few_held_out_rows_are_refused():
    a = gaussians(200, 8, 0)
    with pytest.raises(DataError, match="19 held-out pairs"):
        judge(rb.create("aligner", "affine"), (a, a), (a[:19], a[:19]), torch.arange(19))


def test_beyond_the_token():
    """A copy keeps what the context adds; a space that shares the tokens alone has a high cosine and none within tokens."""
    tokens = torch.randint(20, (4000,), generator=torch.Generator().manual_seed(0))
    vocabulary, group = 2 * gaussians(20, 24, 1), torch.arange(4000) // 50
    a = vocabulary[tokens] + gaussians(4000, 24, 2)
    turn, held = torch.linalg.qr(gaussians(24, 24, 3)).Q, group % 5 == 4
    for b, low, high in ((a @ turn + 0.1 * gaussians(4000, 24, 4), 0.95, 1.0),
                         (vocabulary[tokens] @ turn + gaussians(4000, 24, 5), -0.1, 0.1)):
        _, found = judge(rb.create("aligner", "procrustes"), (a[~held], b[~held]), (a[held], b[held]), group[held],
                         tokens=tokens[~held], test_tokens=tokens[held])
        assert get(found, "cosine", "map").value > 0.6
        assert low < get(found, "cosine-context", "map").value <= high
        assert get(found, "cosine-context", "random").value < 0.1
