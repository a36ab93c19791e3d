"""Answers of many tokens in one forward."""

import pytest
import torch

import reprbasis as rb
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.kits.prefixes import captured, holders, last_logits, longest, spoken
from reprbasis.sites import Site
from reprbasis.testing.models import tiny_checkpoint, tiny_config


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return rb.create("model", "llama", checkpoint=str(tiny_checkpoint(tmp_path_factory.mktemp("model"), tiny_config("llama"))))


@pytest.fixture(scope="module")
def said(model):
    """Answers of 3 and 2 tokens."""
    whole = [TokenSequence(torch.tensor(ids)) for ids in ([5, 6, 7, 8, 9, 10], [5, 6, 11, 12])]
    return spoken(model, [(whole[0], 3), (whole[1], 2)])


def test_every_token_of_an_answer_is_a_row(said):
    rows = [ids[mask].tolist() for ids, mask in zip(said.clean.ids, said.clean.mask, strict=True)]
    assert rows == [[5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 8, 9], [5, 6], [5, 6, 11]]
    assert said.targets.answer.flatten().tolist() == [8, 9, 10, 11, 12]
    assert said.clean.sequences[:, 0].tolist() == [0, 0, 0, 1, 1]


def test_rows_that_are_beginnings_are_not_run(said):
    whole, row = longest(said.clean)
    assert [ids[mask].tolist() for ids, mask in zip(whole.ids, whole.mask, strict=True)] == [[5, 6, 7, 8, 9], [5, 6, 11]]
    assert row.tolist()[:3] == [0, 0, 0]
    assert row.tolist()[4] == 1
    plain = said.clean.take(torch.tensor([2, 4]))
    assert longest(plain)[0] is plain
    assert holders(plain)[1].tolist() == [0, 1]


def test_one_forward_says_what_many_say(model, said):
    once, each = last_logits(model, said.clean), model.forward(said.clean, logits="last").logits[:, 0]
    assert torch.allclose(once, each, atol=1e-5)
    site, at = Site("resid", 1), said.clean.last()
    rows = torch.arange(len(at))
    short, full = captured(model, said.clean, [site])[site], model.forward(said.clean, capture=[site], logits="none")[site]
    assert torch.allclose(short[rows, at], full[rows, at], atol=1e-5)


def test_packed_rows_stay_as_they_are():
    packed = TokenBatch(*(torch.tensor([x, x]) for x in ([1, 2, 1, 2], [1, 1, 1, 1])), torch.tensor([[0, 1, 0, 1]] * 2),
                        torch.tensor([[0, 0, 1, 1]] * 2), torch.tensor([[0, 0, 1, 1]] * 2))
    packed = TokenBatch(packed.ids, packed.mask.bool(), packed.positions, packed.segments, packed.sequences)
    assert longest(packed)[0] is packed
