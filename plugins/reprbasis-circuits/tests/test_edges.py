"""With every edge a circuit does what it does; of the planted chain three edges are all that is needed."""

from dataclasses import replace

import pytest
import torch
from reprbasis_circuits.edges import edge_faithfulness
from reprbasis_circuits.evaluation import Judge

import reprbasis as rb
from reprbasis.errors import UserError
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.kits.circuits import fill_of
from reprbasis.testing.toys import margin


def find(chain, **options):
    finder = rb.create("finder", "mask", **{"steps": 60, "protect": 0, "rows": 64, "error": "node", "cost": 0.05, "repair": 0,
                                            **options})
    return finder.find(chain.model, chain.basis, chain.batches, chain.metric)


def test_three_edges_carry_the_chain(chain):
    found = find(chain)
    assert set(found.nodes()) == chain.truth
    judge = Judge(chain.model, chain.basis, found.setup, chain.held_out, chain.metric, fill=fill_of(found), resamples=100)
    rows, table = edge_faithfulness(judge, found, chain.batches, [1, 2, 3], "circuit")
    got = {m.condition.split(", ", 1)[1].replace(" of 9 edges", ""): m.value for m in rows}
    weights = [1.5, 1.0, 0.8]  # the strongest edge carries 2 * 1.5 of 2 * 3.3, if all move alike
    assert got["0"] == pytest.approx(0, abs=1e-9)
    assert got["3"] == pytest.approx(1, abs=0.01)
    assert got["9"] == pytest.approx(got["3"], abs=1e-9)
    assert min(weights) / 3.3 - 0.02 < got["1"] < max(weights) / 3.3 + 0.02
    assert got["1"] < got["2"] < got["3"]
    assert set(got) == {"0", "9", *(f"{n}{how}" for n in "123" for how in ("", ", shuffled"))}
    assert got["3, shuffled"] < got["3"]
    [pair] = table.edges.values()
    assert pair.coalesce().values().numel() == 3


@pytest.mark.parametrize("error", ["node", "own", "mean"])
def test_with_every_edge_a_circuit_does_what_it_does(world, error):
    """In a curved model with attention and a lossy dictionary, whatever the nodes; and a missing edge makes a difference."""
    model, basis, batches = world
    finder = rb.create("finder", "mask", steps=2, lr=1e-4, repair=0, error=error, sites="resid.*")
    found = finder.find(model, basis, batches, margin())
    generator = torch.Generator().manual_seed(0)
    found = replace(found, masks={s: m & (torch.rand(m.shape, generator=generator) < 0.3) for s, m in found.masks.items()})
    judge = Judge(model, basis, found.setup, batches, margin(), fill=fill_of(found), resamples=100)
    rows, _ = edge_faithfulness(judge, found, batches[:1], [3], "circuit")
    whole = {m.name: m.value for m in judge.circuits([found], "circuit")[0]}["faithfulness"]
    assert rows[-1].value == pytest.approx(whole, abs=1e-6)
    assert abs(rows[1].value - whole) > 1e-3


def test_edges_carry_prompts_in_both_directions(chain):
    """What nodes do cancels in the mean over such prompts; the edges must not be lost with it."""
    train, held_out = ([side for item in part[:2] for side in (item, mirrored(item))] for part in (chain.batches, chain.held_out))
    found = find(replace(chain, batches=train))
    assert set(found.nodes()) == chain.truth
    judge = Judge(chain.model, chain.basis, found.setup, held_out, chain.metric, fill=fill_of(found), resamples=100)
    got = [m.value for m in edge_faithfulness(judge, found, train, [3], "circuit")[0]]
    assert got[:2] == pytest.approx([0, 1], abs=0.05)


def mirrored(item):
    """Clean and corrupted prompts, answers and wrong answers change places."""
    return ContrastBatch(item.corrupt, item.clean, Targets(item.targets.wrong, item.targets.answer), item.roles)


def test_other_masks_are_refused(chain):
    found = find(chain, index="shared", steps=5)
    judge = Judge(chain.model, chain.basis, found.setup, chain.held_out, chain.metric, fill=fill_of(found), resamples=100)
    with pytest.raises(UserError, match="token"):
        edge_faithfulness(judge, found, chain.batches, [1], "circuit")
