"""The numbers and contexts of `atlas` on dictionaries and activations made by hand."""

from dataclasses import replace
from math import log

import pytest
import torch

import reprbasis as rb
from reprbasis.interfaces.evaluator import EvaluationInputs
from reprbasis.runtime.basis import Basis, Normaliser
from reprbasis.sites import Site
from reprbasis.testing.activations import activations_of
from reprbasis.testing.toys import ToyDictionary, toy_model, toy_registry

D = 8


def inputs_of(values, folder, *, layers=6):
    """A rectified identity dictionary over the given activations: latent k is coordinate k where it is positive."""
    activations = activations_of(values, folder, shard=256, sequence=16)
    sites = tuple(values)
    learner = toy_registry().create("learner", "toy-dictionary", width=D)
    dictionary = ToyDictionary(torch.eye(D), torch.eye(D), torch.zeros(D), rectify=True)
    basis = Basis(sites, Normaliser(torch.zeros(len(sites), D), torch.ones(len(sites))), dictionary, learner,
                  details={"training": {"seed": 0, "norm_cap": 4.0, "repeats": False}})
    return EvaluationInputs(toy_model(layers=layers, width=D, vocab=128), basis, activations, seed=0)


def atlas(inputs, **options):
    return rb.create("evaluator", "atlas", **{"tokens": 10_000, "contexts": 6, "window": 3, **options}).evaluate(inputs)


@pytest.mark.parametrize(("layers", "variance", "effective"), [
    ((3,), 0.0, 1.0),  # one layer
    (range(6), 35 / 12, 6.0),  # evenly over n layers: (n^2 - 1) / 12
    ((0, 5), 6.25, 2.0),  # half at each end: ((n - 1) / 2)^2
], ids=["one", "uniform", "ends"])
def test_sharing_over_depth(tmp_path, layers, variance, effective):
    values = {Site("resid", i): torch.zeros(512, D) for i in range(6)}
    for layer in layers:
        values[Site("resid", layer)][:, 2] = 1.0
    found = atlas(inputs_of(values, tmp_path))
    assert found.get("layer_variance", condition="global").value == pytest.approx(variance, abs=1e-9)
    assert found.get("effective_layers", condition="global").value == pytest.approx(effective, abs=1e-9)
    normalised = log(found.get("effective_layers", condition="global").value) / log(6)  # entropy over that of six layers
    assert normalised == pytest.approx({1.0: 0, 6.0: 1, 2.0: 0.38685}[effective], abs=1e-5)
    assert found.get("reuse_rate", condition="global").value == float(len(layers) > 1)
    assert found.get("alive_share", condition="global").value == 1 / D
    [card] = found.features
    assert card.latent == 2
    assert card.notes["effective_sites"] == pytest.approx(effective, abs=1e-9)
    assert card.sites == pytest.approx({f"resid.{i}": 1 / len(layers) for i in layers}, abs=1e-5)


def test_sharing_is_weighted_by_activation(tmp_path):
    """Three quarters of a latent at layer 0, one quarter at layer 4: mean layer 1, variance 3."""
    values = {Site("resid", i): torch.zeros(512, D) for i in range(6)}
    values[Site("resid", 0)][:, 0], values[Site("resid", 4)][:, 0] = 3.0, 1.0
    assert atlas(inputs_of(values, tmp_path)).get("layer_variance", condition="global").value == pytest.approx(3, abs=1e-9)


@pytest.fixture(scope="module")
def random_world(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    values = {Site("resid", i): torch.randn(700, D, generator=generator) - 1.0 for i in range(2)}
    return values, inputs_of(values, tmp_path_factory.mktemp("acts"), layers=2)


def test_top_contexts_are_the_top_tokens(random_world):
    values, inputs = random_world
    table, decode = inputs.activations.table, inputs.model.tokenizer.decode
    codes = torch.stack([x.clamp_min(0) for x in values.values()])  # [S, N, K]
    best, where = codes.max(0)
    for card in atlas(inputs).features:
        expected, heard, per_sequence = [], set(), {}
        for at in (best[:, card.latent] * (table.positions > 0)).argsort(descending=True).tolist():
            sequence = int(table.sequences[at])
            before = tuple(table.ids[max(at - 5, sequence * 16):at + 1].tolist())
            if len(expected) < 6 and before not in heard and per_sequence.get(sequence, 0) < 2:
                heard.add(before)
                per_sequence[sequence] = per_sequence.get(sequence, 0) + 1
                expected.append(at)
        assert card.peak == float(best[table.positions > 0, card.latent].max())
        assert len(card.contexts) == 6
        for at, context in zip(expected, card.contexts, strict=True):
            low, high = max(at - 3, at // 16 * 16), min(at + 4, (at // 16 + 1) * 16, 700)
            assert context.sequence == at // 16
            assert context.site == f"resid.{int(where[at, card.latent])}"
            assert context.peak == at - low
            assert context.tokens == [decode([int(i)]) for i in table.ids[low:high]]
            here = codes[int(where[at, card.latent]), low:high, card.latent]
            assert list(context.values) == pytest.approx(here.tolist(), abs=1e-3)


@pytest.mark.parametrize("tokens", [64, 300, 600, 10_000])
def test_rates_count_what_was_read(random_world, tokens):
    """Reading may stop within a shard; rates are over the tokens that were read, never at position 0."""
    values, inputs = random_world
    found = atlas(inputs, tokens=tokens)
    read = (inputs.activations.table.positions > 0).nonzero()[:tokens, 0]
    codes = torch.stack([x[read].clamp_min(0) for x in values.values()])
    assert f"read on {len(read)} training tokens" in found.notes[0]
    for card in found.features:
        fired = codes[..., card.latent] > 0
        assert card.rate == pytest.approx(float(fired.double().mean()))
        assert sum(card.histogram[1]) == int(fired.sum())
        assert len(card.histogram[0]) == len(card.histogram[1]) + 1
        assert card.peak == float(codes[..., card.latent].max())
    assert torch.equal(found.values["latent_count"], (codes > 0).sum(1))


def test_promoted_tokens_are_those_of_the_unembedding(random_world):
    _, inputs = random_world
    weight = inputs.model.unembedding().weight
    centred = weight - weight.mean(0)
    for card in atlas(inputs, promoted=4).features:
        logits = centred[:, card.latent]  # the direction of latent k is coordinate k
        for shown, order in ((card.promoted, logits.argsort(descending=True)), (card.suppressed, logits.argsort())):
            assert [t for t, _ in shown] == [inputs.model.tokenizer.decode([int(i)]) for i in order[:4]]
            assert [v for _, v in shown] == pytest.approx(logits[order[:4]].tolist(), abs=1e-5)


def test_cards_are_a_random_sample_of_the_alive(tmp_path):
    values = {Site("resid", i): torch.zeros(128, D) for i in range(2)}
    values[Site("resid", 0)][:, [1, 3, 5, 7]] = 1.0
    inputs = inputs_of(values, tmp_path, layers=2)
    assert [c.latent for c in atlas(inputs).features] == [1, 3, 5, 7]
    some = [c.latent for c in atlas(inputs, features=2).features]
    assert len(some) == 2
    assert set(some) < {1, 3, 5, 7}


def test_latents_of_images_and_of_text_are_told_apart(tmp_path):
    """A quarter of the tokens shows images; a latent that fires alike everywhere belongs to both by half."""
    values, image = torch.zeros(512, D), torch.arange(512) % 4 == 0
    values[image, 0] = values[~image, 1] = values[:, 2] = 1.0
    inputs = inputs_of({Site("resid", 0): values}, tmp_path)
    table = replace(inputs.activations.table, flags={"image": image})
    found = atlas(replace(inputs, activations=replace(inputs.activations, table=table)))
    assert [card.notes["share_image"] for card in found.features] == [1.0, 0.0, 0.5]
    assert found.get("mostly_image", condition="global").value == pytest.approx(1 / 3)
    assert found.get("mostly_text", condition="global").value == pytest.approx(1 / 3)
    assert "share_image" not in atlas(inputs).features[0].notes
