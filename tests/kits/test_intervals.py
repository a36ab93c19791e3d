import pytest
import torch

from reprbasis.kits.intervals import mean, ratio


def test_values_are_exact():
    group = torch.tensor([0, 0, 1, 2])
    found = ratio(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 2.0, 4.0, 2.0]), group)
    assert found.value == pytest.approx(1.0)
    assert (found.n, found.groups) == (4, 3)
    assert found.low <= 1 <= found.high


def test_one_group_has_no_interval():
    found = mean(torch.tensor([1.0, 2.0]), torch.tensor([3, 3]))
    assert (found.value, found.low, found.high) == (1.5, None, None)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    g = torch.Generator().manual_seed(0)
    hits = 0
    for trial in range(200):
        level = torch.randn(40, generator=g).repeat_interleave(10)  # tokens of one dialogue share its level
        values = level + 0.1 * torch.randn(400, generator=g)
        found = mean(values, torch.arange(40).repeat_interleave(10), resamples=400, seed=trial)
        hits += found.low <= 0 <= found.high
    assert 0.88 <= hits / 200 <= 0.98


def test_ignoring_the_groups_would_be_overconfident():
    level = torch.randn(40, generator=torch.Generator().manual_seed(1)).repeat_interleave(10)
    grouped, alone = mean(level, torch.arange(40).repeat_interleave(10)), mean(level, torch.arange(400))
    assert (grouped.high - grouped.low) > 2 * (alone.high - alone.low)
