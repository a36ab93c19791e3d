"""Tokens that two vocabularies share, by their bytes."""

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import reprbasis as rb
from reprbasis.errors import DataError
from reprbasis.kits.anchors import shared_vocabulary, token_bytes, vocabulary_rows
from reprbasis.kits.components import unembedded


def tokenizer(vocab, decoder, special=("<s>",)):
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate([*special, *vocab])}, unk_token=special[0]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Whitespace(), decoder
    core.add_special_tokens([AddedToken(t, special=True) for t in special])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=special[0])


def test_spellings_of_three_families():
    """Byte level (U+0120 is a space, U+00C3 U+00A9 is e with an acute accent), metaspace with byte fallback, word pieces."""
    level = tokenizer(["\u0120cat", "s", "\u00c3\u00a9", "\u00c3", "\u010a", "\u0100"], decoders.ByteLevel())
    assert sorted(token_bytes(level).values()) == [b"\n", b" cat", b"s", "\u00e9".encode()]  # half a character, NUL: left out
    meta = tokenizer(["\u2581cat", "s", "\u00e9", "<0x41>"], decoders.Metaspace())
    assert sorted(token_bytes(meta).values()) == [b" cat", b"s", "\u00e9".encode()]
    pieces = tokenizer(["cat", "##s"], decoders.WordPiece())
    assert sorted(token_bytes(pieces).values()) == [b" cat", b"s"]
    shared = shared_vocabulary(level, meta)
    assert [level.convert_ids_to_tokens(int(i)) for i in shared.a] == ["\u0120cat", "s", "\u00c3\u00a9"]
    assert [meta.convert_ids_to_tokens(int(i)) for i in shared.b] == ["\u2581cat", "s", "\u00e9"]
    assert (shared.share_a, shared.share_b) == (3 / 4, 1.0)


def test_numbers_are_a_choice_and_nothing_shared_is_said():
    one, two = (tokenizer(t, decoders.ByteLevel()) for t in (["12", "a1", "b"], ["12", "a1", "b", "c"]))
    assert len(shared_vocabulary(one, two).a) == 3
    assert len(shared_vocabulary(one, two, numbers=False).a) == 1
    with pytest.raises(DataError, match="share no token"):
        shared_vocabulary(one, tokenizer(["x"], decoders.ByteLevel()))
    with pytest.raises(DataError, match="fast tokenizer"):
        token_bytes(object())


def test_rows_carry_the_gain_and_are_centred(checkpoint):
    model = rb.create("model", "llama", checkpoint=str(checkpoint))
    a, b, shared = vocabulary_rows(model, model)
    assert torch.equal(a, b)
    assert torch.allclose(a.mean(0), torch.zeros(a.shape[1]), atol=1e-5)
    whole = unembedded(model)[shared.a]
    assert torch.allclose(a - a[:1], whole - whole[:1], atol=1e-5)
    assert not (set(model.tokenizer.all_special_ids) & set(shared.a.tolist()))
