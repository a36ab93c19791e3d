"""`withdraw` and `as-if` do what they say."""

import pytest
import torch
from reprbasis_editors.withdraw import _needed

import reprbasis as rb
from reprbasis.errors import DataError
from reprbasis.interfaces.editor import EditRequest
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import Example, TokenBatch, TokenSequence
from reprbasis.kits.prefixes import last_logits, spoken
from reprbasis.sites import Site
from reprbasis.testing.models import tiny_checkpoint, tiny_config

KEEP = [Example(text=f"Here is the text number {i} about a {w}.", key=w) for i, w in enumerate(("river", "house", "song"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return rb.create("model", "llama", checkpoint=str(tiny_checkpoint(tmp_path_factory.mktemp("model"), tiny_config("llama"))))


@pytest.fixture(scope="module")
def item(model):
    """What the model itself says, eight tokens."""
    ids = torch.tensor([5, 6, 7])
    for _ in range(8):
        ids = torch.cat([ids, model.forward(TokenBatch.pad([TokenSequence(ids)]), logits="last").logits[0, 0].argmax()[None]])
    return spoken(model, [(TokenSequence(ids), 3)])


def log_prob(model, item):
    return last_logits(model, item.clean).log_softmax(-1).gather(1, item.targets.answer)[:, 0]


@pytest.mark.parametrize("layer", [None, 1])
def test_every_token_falls_to_the_goal(model, item, layer):
    goal = float(log_prob(model, item).min()) - 1.0
    editor = rb.create("editor", "withdraw", goal=goal, layer=layer, budget=5.0, rounds=12)
    plan = editor.edit(model, None, EditRequest([item], KEEP))
    with plan.applied(model):
        found = log_prob(model, item)
    assert bool((found < goal + 0.2).all())
    assert plan.details["places"] == 8


def test_without_a_goal_it_is_what_the_last_tokens_alone_say(model, item):
    before = log_prob(model, item)
    short = [model.forward(TokenBatch.pad([TokenSequence(ids[mask][-2:])]), logits="last").logits[0, 0].log_softmax(-1)
             for ids, mask in zip(item.clean.ids, item.clean.mask, strict=True)]
    goal = torch.stack(short).gather(1, item.targets.answer)[:, 0]
    plan = rb.create("editor", "withdraw", context=2, layer=1, budget=5.0, rounds=12).edit(model, None, EditRequest([item], KEEP))
    with plan.applied(model):
        found = log_prob(model, item)
    assert bool((found < torch.maximum(goal, before) + 0.2).all())


def test_what_is_needed_is_enough(model, item):
    end = Site("resid", model.info.n_layers - 1)
    x = model.forward(item.clean, capture=[end], logits="none")[end][torch.arange(8), item.clean.last()]
    said, goal = item.targets.answer[:, 0], log_prob(model, item) - 0.5
    more, excess = _needed(model, x, said, goal)
    out = model.unembedding()
    after = (out.norm(x + more.float()) @ out.weight.T).log_softmax(-1).gather(1, said[:, None])[:, 0]
    assert torch.allclose(after, goal, atol=1e-2)
    assert torch.allclose(excess, torch.full((8,), 0.5), atol=1e-4)


def test_as_if_writes_what_the_corrupted_prompts_write(model):
    clean, corrupt = (spoken(model, [(TokenSequence(torch.tensor(ids)), 3)]) for ids in ([5, 9, 6, 7, 8], [5, 30, 6, 7, 8]))
    both, site = ContrastBatch(clean.clean, corrupt.clean, clean.targets), Site("mlp_out", 0)
    editor = rb.create("editor", "as-if", layers=[0], ridge=1e-8, keep_weight=0.0, budget=5.0)
    plan = editor.edit(model, None, EditRequest([both]))
    wanted = model.forward(corrupt.clean, capture=[site], logits="none")[site][:, 1]
    with plan.applied(model):
        found = model.forward(clean.clean, capture=[site], logits="none")[site][:, 1]
    assert torch.allclose(found, wanted, atol=1e-3 * float(wanted.abs().max()))
    with pytest.raises(DataError, match="corrupted"):
        rb.create("editor", "as-if").edit(model, None, EditRequest([clean]))
