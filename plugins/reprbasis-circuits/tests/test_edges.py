"""Edges of the planted chain are all that is needed."""

import pytest
from reprbasis_circuits.edges import edge_faithfulness
from reprbasis_circuits.evaluation import Judge

import reprbasis as rb
from reprbasis.errors import UserError
from reprbasis.kits.circuits import fill_of


def find(chain, **options):
    finder = rb.create("finder", "mask", **{"steps": 120, "protect": 0, "rows": 64, "error": "node", "cost": 0.05, **options})
    return finder.find(chain.model, chain.basis, chain.batches, chain.metric)


def test_three_edges_carry_the_chain(chain):
    found = find(chain)
    assert set(found.nodes()) == chain.truth
    judge = Judge(chain.model, chain.basis, found.setup, chain.held_out, chain.metric, fill=fill_of(found), resamples=100)
    rows, table = edge_faithfulness(judge, found, chain.batches, [1, 2], "circuit")
    got = {m.condition.split(", ")[1].split(" of")[0]: m.value for m in rows}
    weights = [1.5, 1.0, 0.8]  # the strongest edge carries 2 * 1.5 of 2 * 3.3, if all move alike
    assert got["0"] == pytest.approx(0, abs=1e-9)
    assert got["3"] == pytest.approx(1, abs=0.01)
    assert min(weights) / 3.3 - 0.02 < got["1"] < max(weights) / 3.3 + 0.02
    assert got["1"] < got["2"] < got["3"]
    [pair] = table.edges.values()
    assert pair.coalesce().values().numel() == 3


def test_other_masks_are_refused(chain):
    found = find(chain, index="shared", steps=5)
    judge = Judge(chain.model, chain.basis, found.setup, chain.held_out, chain.metric, fill=fill_of(found), resamples=100)
    with pytest.raises(UserError, match="token"):
        edge_faithfulness(judge, found, chain.batches, [1], "circuit")
