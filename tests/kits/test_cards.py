"""Cards of chosen latents agree with reading every token."""

import pytest
import torch

from reprbasis.kits.cards import RANKED, cards, promoted
from reprbasis.testing.toys import toy_activations, toy_model, trained_basis


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model = toy_model()
    activations = toy_activations(model, tmp_path_factory.mktemp("acts"))
    return model, activations, trained_basis(activations)


def test_rates_and_contexts_are_those_of_all_tokens(made):
    model, activations, basis = made
    a, b = basis.sites[0], basis.sites[-1]
    found = cards(model, basis, activations, {3: (a, b), 7: (b,)}, contexts=3, window=2)
    fresh = activations.fresh()
    z = {s: basis.encode(s, activations.take(s, fresh)) for s in (a, b)}
    assert found[7].sites == {str(b): 1.0 if float(z[b][:, 7].sum()) else 0.0}
    assert found[7].rate == pytest.approx(float((z[b][:, 7] > 0).double().mean()))
    assert found[3].peak == pytest.approx(float(torch.cat([z[a][:, 3], z[b][:, 3]]).max().clamp_min(0)), rel=1e-4)
    for card in found.values():
        assert len(card.contexts) <= 3
        values = [c.values[c.peak] for c in card.contexts]
        assert values == sorted(values, reverse=True)
        assert not values or values[0] == pytest.approx(card.peak, abs=2e-3)
    assert len(fresh) > RANKED


def test_without_activations_there_is_still_what_it_promotes(made):
    model, _, basis = made
    found = cards(model, basis, None, {2: basis.sites}, words=4)
    assert found[2].contexts == []
    assert len(found[2].promoted) == 4
    [(up, down)] = promoted(model, basis, [2], 4)
    assert found[2].promoted == up
    assert up[0][1] > down[0][1]
    assert cards(model, basis, None, {}) == {}


def test_promoted_tokens_are_those_of_the_unembedding(made):
    model, _, basis = made
    way_out = model.unembedding()
    [(up, _)] = promoted(model, basis, [5], 1)
    direction = basis.dictionary.directions()[5]
    logits = direction @ (way_out.weight * way_out.gain).T.to(direction)
    assert up[0][0] == model.tokenizer.decode([int(logits.argmax())])
