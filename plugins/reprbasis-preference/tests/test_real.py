"""Case P7 on SmolLM2-135M-Instruct: the in-context ranking finds the heads that decide between two names."""

import random

import pytest
import torch
from reprbasis_preference.context import rank

import reprbasis as rb
from reprbasis.interfaces.editor import EditPlan
from reprbasis.interfaces.task import ContrastPair
from reprbasis.interfaces.tokens import Example
from reprbasis.kits.weights import delta_of
from reprbasis.runtime.batches import best_of, last_logits

pytestmark = pytest.mark.real
NAMES = ("Mary", "John", "Tom", "James", "David", "Robert", "Sarah", "Anna", "Paul", "Peter", "Mark", "Daniel")


def pairs(tokenizer, n=48):
    draw = random.Random(0)
    names = [name for name in NAMES if len(tokenizer.encode(f" {name}")) == 1]
    for i in range(n):
        io, s = draw.sample(names, 2)
        first, second = (io, s) if i % 2 else (s, io)
        place, thing = draw.choice(("store", "park", "school", "office")), draw.choice(("book", "drink", "ring", "ball"))
        text = f"Then, {first} and {second} went to the {place}, and {s} gave a {thing} to"
        answer, wrong = (tuple(tokenizer.encode(f" {name}")) for name in (io, s))
        yield ContrastPair(Example(text=text), None, answer, wrong, key=str(i))


def without(model, heads):
    """The plan that zeroes these heads."""
    deltas = {}
    for layer, head in heads:
        view = model.attention(layer).W_O[head]
        name, delta = delta_of(model, view, -view)
        deltas[name] = deltas[name] + delta if name in deltas else delta
    return EditPlan(deltas)


def differences(model, batches):
    found = []
    for item in batches:
        logits = last_logits(model, item.clean)
        found.append(best_of(logits, item.targets.answer) - best_of(logits, item.targets.wrong))
    return torch.cat(found)


def test_the_ranking_finds_the_heads_that_decide():
    model = rb.create("model", "llama")
    batches = rb.batches(model, list(pairs(model.tokenizer)), batch=48)
    before = differences(model, batches)
    assert float(before.mean()) >= 3.5
    assert float((before > 0).float().mean()) >= 0.95
    found = rank(model, batches)
    p, dla = (found.values[name][:, :-2].flatten() for name in ("p", "dla"))

    def top(values):
        return {divmod(int(i), model.info.n_heads) for i in values.topk(6).indices}

    assert len(top(p) & top(dla)) >= 5
    ranks = torch.stack([values.argsort().argsort().double() for values in (p, dla)])
    assert float(torch.corrcoef(ranks)[0, 1]) >= 0.8
    assert float(found.values["q"][:, :-2].flatten()[p.topk(5).indices].max()) < 0.05
    with without(model, top(p)).applied(model):
        assert float(differences(model, batches).mean()) <= 0.4 * float(before.mean())
    draw = random.Random(1)
    late = [(layer, head) for layer in range(15, 30) for head in range(9) if (layer, head) not in top(p)]
    with without(model, draw.sample(late, 6)).applied(model):
        assert float(differences(model, batches).mean()) >= 0.75 * float(before.mean())
