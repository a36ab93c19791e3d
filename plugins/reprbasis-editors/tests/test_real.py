"""Edits of the real model: what was fitted beside what was not."""

import random

import pytest
import torch

import reprbasis as rb
from reprbasis.interfaces.editor import EditRequest
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import Example, TokenBatch, TokenSequence
from reprbasis.runtime.batches import last_logits

pytestmark = pytest.mark.real
COUNTRIES = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Russia": "Moscow",
             "Egypt": "Cairo", "Poland": "Warsaw", "Austria": "Vienna", "Ireland": "Dublin", "Cuba": "Havana", "Norway": "Oslo"}
WORDING = "The capital of {} is the city of"
PARAPHRASES = ("The government of {} sits in its capital,", "People who visit the capital of {} visit the city of")
NEUTRAL = ("The river rises in the hills behind the village and runs slowly through the meadows to the sea.",
           "To sort a list, compare two neighbours and exchange them if they stand in the wrong order.",
           "She opened the letter, read it twice, and put it back into the drawer without a word.")
KEEP = [Example(text=t) for t in (
    "The committee will meet on Tuesday to talk about the budget for the coming year and about the new bridge.",
    "Bake the bread in a hot oven until the crust sounds hollow when you tap it, and let it cool on a rack.",
    "Photosynthesis turns light, water and carbon dioxide into sugar, and gives off oxygen as it does so.")]


@pytest.fixture(scope="module")
def model():
    return rb.create("model", "llama", checkpoint="smollm2-135m-instruct")


def prompts(model, names, wording=WORDING):
    return TokenBatch.pad(model.tokenize([Example(text=wording.format(n)) for n in names]), pad_id=model.pad_id)


def said(model, batch):
    return last_logits(model, batch).argmax(-1)


def log_probs(model, batch):
    return model.forward(batch).logits[batch.mask & (batch.positions > 0)].log_softmax(-1)


def kl(before, now):
    return float((before.exp() * (before - now)).sum(-1).mean())


def towards(model, new, right, names, old):
    """[N] logit of the new city minus that of the right one (`old` for the first)."""
    logits = last_logits(model, prompts(model, names))
    return logits[:, new] - logits[torch.arange(len(names)), torch.cat([torch.tensor([old]), right])]


def logit_diff(model, batches):
    metric = rb.create("metric", "logit-diff")
    return float(torch.cat([metric(model.forward(b.clean), b.clean, b.targets) for b in batches]).mean())


def induction_loss(model):
    half = torch.randint(1000, 40000, (4, 20), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([half, half], 1)
    logits = model.forward(TokenBatch.pad([TokenSequence(row) for row in ids])).logits[:, 20:-1].log_softmax(-1)
    return float(-logits.gather(-1, ids[:, 21:, None]).mean())


def test_e8_routing_holds_for_names_and_templates_it_has_not_seen(model):
    """At most a fifth of the preference is left for unseen names and templates. Random heads from layer 15 on, given the same
    edit of the same strength: less than a tenth is lost in the mean of two draws (single draws: 13 %, 1 %, 3 %).
    """
    def pairs(templates, split):
        return rb.batches(model, rb.create("task", "ioi", templates=templates), split=split, n=16, keep="choice")

    fitted = pairs((0, 1, 2, 3), "train")
    unseen = {"names": pairs((0, 1, 2, 3), "test"), "templates": pairs((4, 6, 7), "train"), "both": pairs((4, 6, 7), "test")}
    before, loss = {k: logit_diff(model, v) for k, v in unseen.items()}, induction_loss(model)
    texts = prompts(model, NEUTRAL, "{}")
    was = log_probs(model, texts)
    editor = rb.create("editor", "routing", folds=2, tries=5)
    plan = editor.edit(model, None, EditRequest(fitted, KEEP))
    assert plan.details["reached"]
    assert all(why["exchange"] > 0 for why in plan.details["components"].values())
    with plan.applied(model):
        after = {k: logit_diff(model, v) for k, v in unseen.items()}
        assert all(abs(after[k]) <= 0.2 * before[k] for k in unseen), (before, after)
        assert induction_loss(model) - loss <= 0.3
        assert kl(was, log_probs(model, texts)) <= 0.03
    chosen = plan.details["components"]
    others = [f"head.{n}.{h}" for n in range(15, 30) for h in range(9) if f"head.{n}.{h}" not in chosen]
    draw, changed = random.Random(0), []
    for _ in range(2):
        control = rb.create("editor", "routing", heads=draw.sample(others, len(chosen)), goal=None,
                            strength=plan.details["strength"]).edit(model, None, EditRequest(fitted, KEEP))
        with control.applied(model):
            changed.append(abs(logit_diff(model, unseen["both"]) / before["both"] - 1))
    assert sum(changed) / len(changed) < 0.1, changed


def test_e7_a_fact_is_changed_in_all_wordings_and_its_neighbours_stay(model):
    """What heads take from the subject, with six neighbours to keep: everything asked of it, and a naive edit for comparison."""
    names = list(COUNTRIES)
    country, near, far = names[0], names[1:7], names[7:]
    new = model.tokenizer.encode(" Chicago")[0]
    old = model.tokenizer.encode(" Paris")[0]
    batch = prompts(model, [country])
    subject = (batch.ids[0] == model.tokenizer.encode(f" {country}")[0]).nonzero()[:1]
    item = ContrastBatch(batch, None, Targets(torch.tensor([[old]]), torch.tensor([[new]])), {"subject": subject})
    request = EditRequest([item], [*KEEP, *(Example(text=f"{WORDING.format(n)} {COUNTRIES[n]}.") for n in near)])
    right, texts = said(model, prompts(model, far)), prompts(model, NEUTRAL, "{}")
    was, standing = log_probs(model, texts), towards(model, new, right, [country, *far], old)

    def leak():
        """How far other countries move towards the new city, as a share of how far the edited one does."""
        moved = towards(model, new, right, [country, *far], old) - standing
        return float(moved[1:].mean() / moved[0])

    options = {"aim": "push", "goal": -2.0, "rivals": "all", "strength": 60.0, "tries": 8}
    plan = rb.create("editor", "ridge", among="values", top=1, at="subject", near=16, contexts=8, **options).edit(
        model, None, request)
    with plan.applied(model):
        assert said(model, batch)[0] == new
        assert all(said(model, prompts(model, [country], w))[0] == new for w in PARAPHRASES)
        assert float((said(model, prompts(model, far)) == right).double().mean()) >= 0.75
        assert float(last_logits(model, batch).softmax(-1)[0, new]) >= 0.5
        assert kl(was, log_probs(model, texts)) <= 0.005
        local = leak()
    naive = rb.create("editor", "ridge", components=["mlp.24"], keep_weight=0.0, **options).edit(
        model, None, EditRequest(request.change, KEEP))
    with naive.applied(model):
        assert said(model, batch)[0] == new
        assert local < 0.4 < leak()
