"""What changes a node: words, and pieces of images, which have the same token ids whatever they show."""

import pytest
import torch
from reprbasis_graphs.measured import from_inputs, worth

import reprbasis as rb
from reprbasis.interfaces.finder import Circuit, Setup
from reprbasis.kits.nodes import Places
from reprbasis.sites import Site
from reprbasis.testing.toys import toy_basis

RESID = Site("resid", 1)


@pytest.fixture(scope="module")
def seen():
    """A vision-language model, a basis, and questions about images that differ in the object's colour alone."""
    model = rb.create("model", "lvlm")
    task = rb.create("task", "visual-question", shapes=["square"], places=["top left"], colours=["red", "blue"])
    return model, toy_basis(model, "resid.1"), rb.batches(model, task, n=4)


def test_images_are_exchanged_like_words(seen):
    model, basis, found = seen
    places = Places.of("role", found)
    at = {name: places.names.index(name) for name in ("object", "word", "end")}
    [item] = found
    assert torch.equal(item.clean.ids, item.corrupt.ids)
    node, end = (RESID, at["object"], 3), (RESID, at["end"], 3)
    shares = from_inputs(model, basis, found, places, [node, end], range(len(places)))
    assert shares[at["object"], node] > 0.8, "what the object's tokens hold comes from the object"
    assert shares[at["object"], end] > 0.5
    assert not {(at["word"], node), (at["end"], end)} & shares.keys(), "words are the same in both"


def test_prompts_with_different_images_are_drawn_apart(seen):
    """Else the interval would rest on one prompt and have no width."""
    model, basis, found = seen
    mask = torch.ones(1, basis.d_dict + 1, dtype=torch.bool)
    setup = Setup(basis.sites, ablation="zero", index="shared")
    circuit = Circuit(dict.fromkeys(basis.sites, mask), details={"setup": setup.facts()})
    model_value = worth(model, basis, circuit, found, rb.create("metric", "logit-diff"), [], random=1).model
    assert model_value.low < model_value.value < model_value.high
