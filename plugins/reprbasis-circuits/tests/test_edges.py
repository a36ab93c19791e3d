"""Edges of the planted chain are all that is needed."""

from dataclasses import replace

import pytest
from reprbasis_circuits.edges import edge_faithfulness
from reprbasis_circuits.evaluation import Judge

import reprbasis as rb
from reprbasis.errors import UserError
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.kits.circuits import fill_of


def find(chain, **options):
    finder = rb.create("finder", "mask", **{"steps": 120, "protect": 0, "rows": 64, "error": "node", "cost": 0.05, **options})
    return finder.find(chain.model, chain.basis, chain.batches, chain.metric)


def test_three_edges_carry_the_chain(chain):
    found = find(chain)
    assert set(found.nodes()) == chain.truth
    judge = Judge(chain.model, chain.basis, found.setup, chain.held_out, chain.metric, fill=fill_of(found), resamples=100)
    rows, table = edge_faithfulness(judge, found, chain.batches, [1, 2], "circuit")
    got = {m.condition.split(", ", 1)[1].replace(" of 3 edges", ""): m.value for m in rows}
    weights = [1.5, 1.0, 0.8]  # the strongest edge carries 2 * 1.5 of 2 * 3.3, if all move alike
    assert got["0"] == pytest.approx(0, abs=1e-9)
    assert got["3"] == pytest.approx(1, abs=0.01)
    assert min(weights) / 3.3 - 0.02 < got["1"] < max(weights) / 3.3 + 0.02
    assert got["1"] < got["2"] < got["3"]
    assert set(got) == {"0", *(f"{n}{how}" for n in "123" for how in ("", ", shuffled"))}
    [pair] = table.edges.values()
    assert pair.coalesce().values().numel() == 3


def test_edges_carry_prompts_in_both_directions(chain):
    """What nodes do cancels in the mean over such prompts; the edges must not be lost with it."""
    train, held_out = ([side for item in part[:2] for side in (item, mirrored(item))] for part in (chain.batches, chain.held_out))
    found = find(replace(chain, batches=train))
    assert set(found.nodes()) == chain.truth
    judge = Judge(chain.model, chain.basis, found.setup, held_out, chain.metric, fill=fill_of(found), resamples=100)
    got = [m.value for m in edge_faithfulness(judge, found, train, [], "circuit")[0]]
    assert got[:2] == pytest.approx([0, 1], abs=0.05)


def mirrored(item):
    """Clean and corrupted prompts, answers and wrong answers change places."""
    return ContrastBatch(item.corrupt, item.clean, Targets(item.targets.wrong, item.targets.answer), item.roles)


def test_other_masks_are_refused(chain):
    found = find(chain, index="shared", steps=5)
    judge = Judge(chain.model, chain.basis, found.setup, chain.held_out, chain.metric, fill=fill_of(found), resamples=100)
    with pytest.raises(UserError, match="token"):
        edge_faithfulness(judge, found, chain.batches, [1], "circuit")
