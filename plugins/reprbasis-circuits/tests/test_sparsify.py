"""Laws of the optimiser, on functions whose answer is known (verification cases V6, V7 and V9)."""

import math

import pytest
import torch
from reprbasis_circuits.sparsify import Schedule, sparsify

EFFECTS = torch.arange(1, 21, dtype=torch.float64) / 10
COSTS = (0.05, 0.25, 0.75, 1.25, 1.95, 3.0)


def linear(step, mask):
    return (EFFECTS.sum() - mask @ EFFECTS).abs()


@pytest.mark.parametrize(("lr", "steps"), [(0.05, 300), (0.05, 56), (1.0, 56), (None, 60), (None, 300)])
def test_linear_threshold_law(lr, steps):
    found = sparsify(linear, 20, COSTS, Schedule.own(steps, lr=lr), dtype=torch.float64)
    assert found.kept.sum(1).tolist() == [20, 18, 13, 8, 1, 0]
    for kept, cost in zip(found.kept, COSTS, strict=True):
        assert torch.equal(kept, cost + 1e-9 < EFFECTS)


def test_linear_threshold_law_with_the_published_schedule():
    found = sparsify(linear, 20, COSTS, Schedule.ssc(56 / 1.1), noise=0.0, dtype=torch.float64)
    assert found.kept.sum(1).tolist() == [20, 18, 13, 8, 1, 0]


def redundant(step, mask):
    return (1 - (1 - (1 - mask[:, 0]) * (1 - mask[:, 1]))).abs()


@pytest.mark.parametrize("cost", [0.1, 0.2, 0.3])
def test_one_of_two_redundant_nodes_is_kept(cost):
    schedule = Schedule.own(300, lr=0.05)
    noisy = sparsify(redundant, 2, [cost], schedule, noise=0.01, seed=3)
    assert int(noisy.kept.sum()) == 1
    assert float(redundant(0, noisy.kept.float())) == 0  # it does the whole task
    even = sparsify(redundant, 2, [cost], schedule, noise=0.0)
    assert int(even.kept.sum()) == 2  # nothing tells them apart


def test_schedules():
    own = Schedule.own(200)
    assert own.temperature(0) == 1.0
    assert own.temperature(199) == 200.0
    assert float(torch.sigmoid(torch.tensor(1.0))) == pytest.approx(0.7310586, abs=1e-7)
    published = (187, 0.3, 63, 1.2157, 627.1), (187, 0.4, 84, 1.2206, 643.6), (181, 0.8, 161, 1.2155, 626.4)
    for batches, share, steps, last, beta in published:
        ssc = Schedule.ssc(batches * share)
        assert len(ssc.progress) == steps
        assert ssc.progress[-1] == pytest.approx(last, abs=1e-4)
        assert ssc.temperature(steps - 1) == pytest.approx(beta, abs=0.1)
    assert Schedule.own(60).lr == 0.05
    assert Schedule.own(200).lr == 0.015


@pytest.mark.parametrize("beta", [200.0, 608.0])
def test_soft_masks_become_hard(beta):
    s = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    sure = s.abs() > math.log(999) / beta
    soft, hard = torch.sigmoid(beta * s), (s > 0).double()
    assert float((soft - hard)[sure].abs().max()) <= 1e-3


def test_costs_together_equal_costs_alone():
    schedule = Schedule.own(80, patience=None)
    together = sparsify(linear, 20, COSTS, schedule, dtype=torch.float64)
    for row, cost in zip(together.logits, COSTS, strict=True):
        alone = sparsify(linear, 20, [cost], schedule, dtype=torch.float64)
        assert torch.allclose(alone.logits[0], row, rtol=0, atol=1e-12)


def test_it_stops_when_nothing_changes():
    found = sparsify(linear, 20, [0.05], Schedule.own(300, patience=20), dtype=torch.float64)
    assert found.steps < 300
    assert torch.equal(found.kept, sparsify(linear, 20, [0.05], Schedule.own(300, patience=None), dtype=torch.float64).kept)
