"""Moments of pairs: the same from batches, about any point, and enough to know a map's error."""

import pytest
import torch

from reprbasis.errors import DataError, ShapeError
from reprbasis.kits.moments import PairMoments


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(300, 7, generator=generator, dtype=torch.float64) + 50
    return a, torch.randn(300, 5, generator=generator, dtype=torch.float64) - 20


def test_batches_give_what_all_rows_give(rows):
    a, b = rows
    found = PairMoments.of(zip(a.split(64), b.split(64), strict=True)).centred()
    x, y = a - a.mean(0), b - b.mean(0)
    assert found.n == 300
    for one, two in ((found.mean_a, a.mean(0)), (found.mean_b, b.mean(0)), (found.aa, x.T @ x), (found.bb, y.T @ y),
                     (found.ab, x.T @ y)):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-10)


def test_far_from_zero_nothing_cancels(rows):
    a, b = rows
    found = PairMoments.of([(a + 1e8, b)]).centred()
    x = (a + 1e8) - (a + 1e8).mean(0)
    assert torch.allclose(found.aa, x.T @ x, rtol=1e-9)


def test_sets_of_rows_add_and_are_taken_away(rows):
    a, b = rows
    parts = [PairMoments.of([(a[i::3], b[i::3])]) for i in range(3)]
    whole = (parts[0] + parts[1] + parts[2]).centred()
    rest = (parts[0] + parts[1] + parts[2] + -parts[1]).centred()
    assert torch.allclose(whole.ab, PairMoments.of([(a, b)]).centred().ab)
    left = torch.arange(300) % 3 != 1
    assert rest.n == 200
    assert torch.allclose(rest.ab, PairMoments.of([(a[left], b[left])]).centred().ab)
    assert torch.allclose(whole.swapped().ab, whole.ab.T)


def test_error_of_a_map_without_the_rows(rows):
    a, b = rows
    generator = torch.Generator().manual_seed(1)
    matrix, mean_a, mean_b = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((7, 5), (7,), (5,)))
    direct = (b - (a - mean_a) @ matrix - mean_b).square().sum()
    assert PairMoments.of([(a, b)]).error(matrix, mean_a, mean_b) == pytest.approx(float(direct), rel=1e-9)


def test_refusals(rows):
    a, b = rows
    with pytest.raises(ShapeError, match=r"\(300, 7\) and \(299, 5\)"):
        PairMoments.of([(a, b[:-1])])
    with pytest.raises(ShapeError, match="widths 6 and 5 after 7 and 5"):
        PairMoments.of([(a, b), (a[:, :6], b)])
    with pytest.raises(DataError, match="no paired rows"):
        PairMoments.of([])
    with pytest.raises(DataError, match="not finite"):
        PairMoments.of([(a.clone().fill_(torch.nan), b)])
