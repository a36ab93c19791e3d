"""What the model sees together: dialogues alone, blocks, and packing with the mask forgotten (sae verification case 3)."""

import pytest
import torch

import reprbasis as rb
from reprbasis.errors import DataError
from reprbasis.interfaces.tokens import Example, Message, TokenBatch, TokenSequence
from reprbasis.runtime.harvest import RowLayout
from reprbasis.sites import Site


def sequences(*lengths, **more):
    out, at = [], 0
    for i, n in enumerate(lengths):
        out.append(TokenSequence(torch.arange(at, at + n), {"special": torch.arange(n) < 2}, i, f"d{i}", **more))
        at += n
    return out


def lay(layout, isolate, length, *lengths):
    rows = RowLayout(layout, isolate, length)
    out = [piece for s in sequences(*lengths) for piece in rows.add(s)]
    return out + list(rows.end())


@pytest.mark.parametrize(("layout", "isolate", "sizes", "keys"), [
    ("dialogues", True, [3, 7, 1, 12, 5], ["d0", "d1", "d2", "d3", "d4"]),
    ("dialogues", False, [10, 1, 12, 5], ["row-0", "row-1", "row-2", "row-3"]),
    ("blocks", False, [10, 10, 8], ["row-0", "row-1", "row-2"]),
    ("blocks", True, [3, 7, 1, 9, 3, 5], ["d0#0", "d1#0", "d2#0", "d3#0", "d3#1", "d4#0"]),
])
def test_every_layout_keeps_every_token_in_order(layout, isolate, sizes, keys):
    found = lay(layout, isolate, 10, 3, 7, 1, 12, 5)
    assert [len(s) for s in found] == sizes
    assert [s.key for s in found] == keys
    assert torch.equal(torch.cat([s.ids for s in found]), torch.arange(28))
    assert torch.equal(torch.cat([s.flags["special"] for s in found]),
                       torch.cat([s.flags["special"] for s in sequences(3, 7, 1, 12, 5)]))


@pytest.mark.parametrize(("layout", "message"), [("dialogues", "cannot share a row"), ("blocks", "cannot be cut into blocks")])
def test_extra_inputs_need_a_row_of_their_own(layout, message):
    rows = RowLayout(layout, False, 4)
    with pytest.raises(DataError, match=message):
        list(rows.add(sequences(3, extra={"pixels": torch.zeros(1)})[0])) + list(rows.end())


@pytest.fixture(scope="module")
def model(checkpoint):
    return rb.create("model", "llama", checkpoint=str(checkpoint))


WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "seven", "red", "birds", "that", "were", "not", "there"]
EXAMPLES = [Example(messages=(Message("user", " ".join(WORDS[(i + j) % 15] for j in range(2 + i * 7 % 13))),
                              Message("assistant", WORDS[i % 15])), key=f"e{i}") for i in range(40)]
OPTIONS = {"tokens": 1200, "row_tokens": 100, "rows": 3, "shard_tokens": 250, "dtype": "float32", "sites": ["embed", "resid.*"]}


def values(acts, site):
    return torch.cat([acts.read(site, i) for i in range(len(acts.shards))])


@pytest.fixture(scope="module")
def harvests(model):
    return {(layout, isolate): rb.harvest(model, EXAMPLES, layout=layout, isolate=isolate, **OPTIONS)
            for layout in ("dialogues", "blocks") for isolate in (True, False)}


def test_all_layouts_hold_the_same_tokens_and_hold_out_the_same_dialogues(harvests):
    first, *others = harvests.values()
    for other in others:
        assert torch.equal(first.table.ids, other.table.ids)
        assert torch.equal(first.table.flags["special"], other.table.flags["special"])
        assert torch.equal(values(first, Site("embed")), values(other, Site("embed")))
        alone, same = first.sequences("held-out"), other.sequences("held-out")
        assert [s.key for s in alone] == [s.key for s in same]
        assert all(torch.equal(a.ids, b.ids) for a, b in zip(alone, same, strict=True))


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("layout", ["dialogues", "blocks"])
def test_what_is_stored_is_the_forward_of_each_sequence_alone(model, harvests, layout, isolate):
    acts, site = harvests[layout, isolate], Site("resid", model.info.n_layers - 1)
    stored = values(acts, site)
    for sequence, (_, span) in zip(acts.sequences("train"), acts.table.spans(), strict=True):
        alone = model.forward(TokenBatch.pad([sequence]), capture=[site], logits="none").sites[site][0]
        assert torch.equal(acts.table.positions[span], torch.arange(len(sequence)))
        assert float((stored[span] - alone).abs().max()) <= 1e-5 * float(alone.abs().max())


def test_without_isolation_dialogues_see_each_other(harvests, model):
    site = Site("resid", model.info.n_layers - 1)
    alone, leaky = (values(harvests["dialogues", i], site) for i in (True, False))
    starts = harvests["dialogues", False].table.positions == 0
    later = ~torch.isin(torch.arange(len(alone)), torch.cat([torch.arange(int(s), int(s) + 5) for s in starts.nonzero()]))
    assert float((alone - leaky)[later].norm() / alone[later].norm()) > 1e-2
    cut = harvests["blocks", True].table.positions == 0
    assert cut.sum() > (harvests["dialogues", True].table.positions == 0).sum()


def test_a_harvest_in_blocks_can_be_learned_from(harvests):
    acts = harvests["blocks", False]
    basis = rb.fit(rb.create("learner", "topk", width=16, k=4), acts, rows=2048, batch=256, sites="resid.*", repeats=True)
    assert basis.encode(Site("resid", 0), values(acts, Site("resid", 0))).shape == (acts.tokens, 16)
    assert acts.origin["layout"] == "blocks"
    assert acts.origin["isolate"] is False


def test_earlier_activations_can_be_harvested_again(model, harvests):
    """The same sequences and the same split, at another site and in another layout."""
    first = harvests["dialogues", True]
    again = rb.harvest(model, first, **{**OPTIONS, "sites": ["attn_out.1", "resid.*"]})
    assert [s.key for s in again.sequences("held-out")] == [s.key for s in first.sequences("held-out")]
    assert torch.equal(again.table.ids, first.table.ids)
    assert torch.equal(values(again, Site("resid", 1)), values(first, Site("resid", 1)))
    blocks = rb.harvest(model, first, layout="blocks", isolate=False, **OPTIONS)
    assert torch.equal(values(blocks, Site("resid", 1)), values(harvests["blocks", False], Site("resid", 1)))
    with pytest.raises(DataError, match="cannot be taken apart"):
        rb.harvest(model, blocks, **OPTIONS)
