"""Planted concepts are interpretable, random features are not, and an explanation that fits everything earns nothing."""

from dataclasses import replace

import pytest
import torch
from reprbasis_interpret.evaluator import curve
from reprbasis_interpret.lexical import Lexical, clues
from reprbasis_interpret.passages import activity, held_out, trained_on
from reprbasis_interpret.trials import MARK, Deck

import reprbasis as rb
from reprbasis.interfaces.evaluator import EvaluationInputs
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.runtime.basis import Basis
from reprbasis.testing.activations import activations_of
from reprbasis.testing.toys import toy_activations, toy_basis, toy_model

SITE, PLANTED, SEQUENCES, LENGTH = rb.Site("resid", 0), 4, 80, 33


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Words at random; latents 0 to 3 are active on words of their own class, 4 to 7 as often, on tokens drawn at random."""
    model, generator = toy_model(), torch.Generator().manual_seed(0)
    n = SEQUENCES * LENGTH
    ids = torch.randint(6, 54, (n,), generator=generator)
    on = torch.stack([(ids % 16) == k for k in range(PLANTED)] + [torch.rand(n, generator=generator) < 1 / 16
                                                                 for _ in range(PLANTED)], 1)
    x = on * (1 + torch.rand(n, 2 * PLANTED, generator=generator))
    acts = activations_of({SITE: x}, tmp_path_factory.mktemp("planted"), shard=1000)
    table = replace(acts.table, ids=ids, sequences=torch.arange(n) // LENGTH, positions=torch.arange(n) % LENGTH,
                    keys=[str(i) for i in range(SEQUENCES)], held_out=torch.zeros(SEQUENCES, dtype=torch.bool))
    acts = replace(acts, table=table)
    basis = toy_basis(model, [SITE], identity=True)
    return EvaluationInputs(model, Basis([SITE], basis.normaliser, basis.dictionary, basis.learner), acts), on


def evaluate(world, **options):
    settings = {"text": "train", "tokens": 10_000, "window": 8, "controls": ["shuffled", "random"], "resamples": 100,
                "protocols": ["detection", "fuzzing", "comsem"], **options}
    return rb.create("evaluator", "interpret", **settings).evaluate(world[0])


def test_planted_concepts_are_told_from_random_features(world):
    found = evaluate(world)
    scores = dict(zip(found.values[f"latents/{SITE}"].tolist(), found.values[f"scores/{SITE}"], strict=True))
    planted = torch.stack([scores[k] for k in range(PLANTED)])
    random = torch.stack([scores[k] for k in range(PLANTED, 2 * PLANTED)])
    assert bool((planted >= 0.9).all()), planted
    assert float(random.mean()) < 0.6, random
    value = {(m.name, m.condition): m.value for m in found.measurements}
    assert value["interpretable", "global"] == 0.5
    assert value["interpretable", "shuffled"] <= 0.25
    assert value["interpretable", "random"] <= 0.25
    for protocol in ("detection", "fuzzing", "comsem"):
        assert abs(value[protocol, "shuffled"] - 0.5) < 0.2
        assert abs(value[protocol, "random"] - 0.5) < 0.15


def test_saying_yes_to_everything_earns_nothing(world, monkeypatch):
    """The published score, yes on members alone, is 1 for an explanation that fits any word."""
    monkeypatch.setattr(Lexical, "match", lambda self, explanation, passages, *, model: torch.ones(len(passages)))
    found = evaluate(world)
    value = {(m.name, m.condition): m.value for m in found.measurements}
    assert value["comsem_yes", "global"] == 1
    assert value["comsem_advantage", "global"] == 0
    assert value["comsem", "global"] == value["detection", "global"] == 0.5
    assert value["interpretable", "global"] == 0


def test_passages_are_what_they_are_said_to_be(world):
    inputs, on = world
    text = trained_on(inputs, [SITE], tokens=10_000, window=8)
    assert len(text.ids) == SEQUENCES * 4  # position 0 is left out, 32 tokens are four passages
    assert torch.equal(text.ids, inputs.activations.table.ids[text.place])
    active = activity(inputs.basis, SITE, text.values[SITE])[text.place]
    assert torch.equal(active > 0, on[text.place])
    deck = Deck(text, active, shown=5, tests=6, seed=0, decode=lambda i: f" {i}")
    latents, alive = deck.eligible()
    assert (latents.tolist(), alive) == (list(range(2 * PLANTED)), 2 * PLANTED)
    where = {tuple(ids): i for i, ids in enumerate(text.ids.tolist())}
    testing = set(text.sequences[deck.testing].tolist())
    assert 0 < len(testing) < SEQUENCES
    for trial in deck.trials(latents.tolist()):
        def peaks(passages, k=trial.latent):
            return [(active[where[p.ids], :, k], p.marked) for p in passages]

        explaining = [*trial.shown, *trial.contrast, *trial.members]
        asked = [p for has, lacks in trial.tests.values() for p in (*has, *lacks)]
        assert not {int(text.sequences[where[p.ids]]) for p in explaining} & testing
        assert {int(text.sequences[where[p.ids]]) for p in asked} <= testing
        assert (len(trial.shown), len(trial.contrast), len(trial.members)) == (5, 5, 5)
        assert all(len(has) == len(lacks) == 6 for has, lacks in trial.tests.values())
        assert all(list(m) == (a >= MARK * a.max()).nonzero().flatten().tolist() for a, m in peaks(trial.shown))
        assert all(m == (int(a.argmax()),) for a, m in peaks([*trial.members, *trial.tests["comsem"][0]]))
        assert all(a.max() == 0 and m == () for a, m in peaks([*trial.contrast, *trial.tests["detection"][1]]))
        assert all(a.max() > 0 and m == () for a, m in peaks(trial.tests["detection"][0]))
        assert all(m and not a[list(m)].any() and a.max() > 0 for a, m in peaks(trial.tests["fuzzing"][1]))
        assert all(len(m) == 1 and a[m[0]] == 0 for a, m in peaks(trial.tests["comsem"][1]))


def test_strong_and_weak_passages_are_both_shown(world):
    """One from each stratum of strength: of 5 shown, the strongest is in the upper fifth and the weakest in the lowest."""
    inputs, _ = world
    text = trained_on(inputs, [SITE], tokens=10_000, window=8)
    active = activity(inputs.basis, SITE, text.values[SITE])[text.place]
    deck = Deck(text, active, shown=5, tests=5, seed=3, decode=str)
    peak = active.amax(1)[~deck.testing, 0]
    peak = peak[peak > 0].sort().values
    where = {tuple(ids): i for i, ids in enumerate(text.ids.tolist())}
    [trial] = deck.trials([0])
    shown = sorted(float(active[where[p.ids], :, 0].max()) for p in trial.shown)
    assert shown[0] <= float(peak[len(peak) // 3])
    assert shown[-1] >= float(peak[2 * len(peak) // 3])


def test_a_bit_that_is_mostly_1_is_active_where_it_is_0(world):
    """Of a binary code the rarer value counts (burstiness); a real code counts where it is not 0."""
    x = torch.ones(100, 8)
    x[:10, 0] = 0
    basis = world[0].basis
    bits = Basis([SITE], basis.normaliser, basis.dictionary, basis.learner, capabilities=frozenset({"binary-latents"}))
    assert activity(bits, SITE, x)[:, 0].sum() == 10
    assert activity(basis, SITE, x)[:, 0].sum() == 90


def test_the_curve_by_hand():
    assert curve(torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.2])) == 1
    assert curve(torch.tensor([1.0, 1, 1, 0]), torch.tensor([1.0, 0, 0, 0])) == 0.75  # balanced accuracy: (3/4 + 3/4) / 2
    assert curve(torch.tensor([0.5]), torch.tensor([0.5])) == 0.5
    assert curve(torch.tensor([0.1]), torch.tensor([0.3, 0.0])) == 0.5


@pytest.mark.parametrize(("token", "kind"), [(" Paris", "capitalised word"), ("12", "number"), (" ,", "punctuation mark"),
                                             ("\n\n", "line break"), ("<|im_end|>", "control token"), (" red", "lower-case word"),
                                             ("ing", "word without a space before it")])
def test_kinds_of_token(token, kind):
    assert f"a {kind}" in clues([" x", token], 1)
    assert "after 'x'" in clues([" x", token], 1)


def test_held_out_text_is_read_where_nothing_was_trained(tmp_path):
    """Every passage is new text of a held-out sequence, with the values that the model gives it."""
    model = toy_model()
    acts = toy_activations(model, tmp_path)
    inputs = EvaluationInputs(model, toy_basis(model, [SITE]), acts)
    text = held_out(inputs, [SITE], tokens=90, window=4)
    fresh = dict(zip((s.sequence for s in acts.sequences("held-out")), acts.unseen(acts.sequences("held-out")), strict=True))
    for index, sequence in enumerate(text.sequences.tolist()):
        [source] = [s for s in acts.sequences("held-out") if s.sequence == sequence]
        starts = [i for i in range(1, len(source) - 3) if torch.equal(source.ids[i:i + 4], text.ids[index])]
        x = model.forward(TokenBatch.pad([source]), capture=[SITE])[SITE][0]
        assert any(bool(fresh[sequence][i:i + 4].all()) and torch.allclose(x[i:i + 4], text.values[SITE][text.place[index]],
                                                                          atol=1e-5) for i in starts)
