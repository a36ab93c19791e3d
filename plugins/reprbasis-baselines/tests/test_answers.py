"""Answers of many tokens are one answer to the losses that mean whole answers."""

import torch
from reprbasis_baselines.train import answers_of

import reprbasis as rb
from reprbasis.interfaces.editor import EditRequest
from reprbasis.interfaces.tokens import TokenSequence
from reprbasis.kits.prefixes import last_logits, spoken
from reprbasis.testing.models import tiny_checkpoint, tiny_config


def test_tokens_of_one_text_are_summed_or_averaged(tmp_path):
    model = rb.create("model", "llama", checkpoint=str(tiny_checkpoint(tmp_path, tiny_config("llama"))))
    texts = [TokenSequence(torch.tensor(ids)) for ids in ([5, 6, 7, 8, 9], [5, 11, 12])]
    item = spoken(model, [(texts[0], 2), (texts[1], 2)])
    x = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert sorted(answers_of(x, item.clean).tolist()) == [6.0, 10.0]
    assert sorted(answers_of(x, item.clean, mean=True).tolist()) == [2.0, 10.0]

    def said():
        return float(last_logits(model, item.clean).log_softmax(-1).gather(1, item.targets.answer).mean())

    before = said()
    plan = rb.create("editor", "npo", lr=1e-2, steps=4, goal=None).edit(model, None, EditRequest([item]))
    assert (plan.details["steps"], plan.details["margins"]) == (4, [])
    goal = rb.create("editor", "ga", lr=1e-2, steps=20, goal=before - 0.5).edit(model, None, EditRequest([item])).details
    assert goal["steps"] == len(goal["margins"]) - 1 < 20
    with plan.applied(model):
        assert said() < before
