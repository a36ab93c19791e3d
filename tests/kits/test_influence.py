"""V13: influence on a graph whose answer is known, and pruning by it."""

import pytest
import torch

from reprbasis.errors import DataError
from reprbasis.kits.influence import cumulative, influence, prune

EDGES = {11: (1, 3, 6, 8), 3: (0, 1, 6), 1: (9, 10), 0: (9,)}
KNOWN = [1 / 12, 1 / 3, 0, 1 / 4, 0, 0, 1 / 3, 0, 1 / 4, 1 / 4, 1 / 6, 0]


@pytest.fixture
def graph():
    weights, outputs = torch.zeros(12, 12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    for target, sources in EDGES.items():
        weights[target, list(sources)] = 10
    outputs[11] = 1
    return weights, outputs


@pytest.mark.parametrize("scale", [1, 0.001, -7])
def test_influence_is_what_paths_carry(graph, scale):
    weights, outputs = graph
    assert influence(scale * weights, outputs).tolist() == pytest.approx(KNOWN, abs=1e-6)


def test_a_cycle_is_refused(graph):
    weights, outputs = graph
    weights[9, 3] = 1
    with pytest.raises(DataError, match="cycle"):
        influence(weights, outputs)


def test_shares_at_rank():
    assert cumulative(torch.tensor([1.0, 6.0, 3.0])).tolist() == pytest.approx([1.0, 0.6, 0.9])


def test_pruning_keeps_the_share_asked_for(graph):
    weights, outputs = graph
    inputs = torch.zeros(12, dtype=torch.bool)
    inputs[[6, 8, 9, 10]] = True
    everything, links = prune(weights, outputs, nodes=1.0, edges=1.0, keep=inputs)
    assert everything.nonzero()[:, 0].tolist() == [0, 1, 3, 6, 8, 9, 10, 11]
    assert torch.equal(links, weights != 0)
    kept, links = prune(weights, outputs, nodes=0.8, edges=1.0, keep=inputs)
    assert kept.nonzero()[:, 0].tolist() == [1, 3, 6, 8, 9, 10, 11]  # 0 has the least influence
    assert not links[3, 0]
    alone, _ = prune(weights, outputs, nodes=0.5, edges=1.0)
    assert alone.nonzero()[:, 0].tolist() == [11]  # 6 and 8 have nothing below them; without them neither 1 nor 3 has
