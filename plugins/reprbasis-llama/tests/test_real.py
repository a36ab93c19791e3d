"""The laws again on the real model SmolLM2-135M-Instruct (Q4_1 weights, converted to float32)."""

import pytest
import torch
from reprbasis_llama.config import LlamaConfig
from reprbasis_llama.model import LlamaAdapter, embedded

from reprbasis.interfaces.model import Sampling
from reprbasis.interfaces.tokens import Example, Message, TokenBatch
from reprbasis.sites import Site
from reprbasis.testing.contracts.model import Same

pytestmark = pytest.mark.real
TEXTS = ("The capital of France is", "The keys to the cabinet that the clerk holds", "Paris", "One, two, three, four,")


@pytest.fixture(scope="module")
def model():
    return LlamaAdapter(LlamaConfig())


def close(a, b, rtol=1e-4):
    return float((a - b).abs().max()) <= rtol * float(b.abs().max())


def test_it_knows_the_capital_of_france(model):
    """A wrong permutation of the rotary halves still gives fluent text on short prompts; this probability does not."""
    logits = model.forward(model.batch([Example(text=TEXTS[0])]), logits="last").logits[0, 0]
    assert float(logits.softmax(-1)[model.tokenizer.encode(" Paris")[0]]) > 0.5


def test_identity_edits_and_capture_change_nothing(model):
    batch, sites = model.batch([Example(text=t) for t in TEXTS]), model.info.sites
    plain = model.forward(batch).logits
    assert torch.equal(plain, model.forward(batch, capture=sites, edits=[Same(s) for s in sites]).logits)


def test_sites_are_transformers_hidden_states(model):
    batch = model.batch([Example(text=TEXTS[1])])
    mine = model.forward(batch, capture=model.info.sites)
    with torch.no_grad():
        theirs = model.network(batch.ids, output_hidden_states=True)
    expected = [Site("embed"), *(Site("resid", i) for i in range(model.info.n_layers - 1)), Site("final")]
    for site, value in zip(expected, theirs.hidden_states, strict=True):
        assert close(mine[site], value, 1e-6), site
    assert close(mine.logits, theirs.logits, 1e-6)


def test_padding_and_packing_agree_with_one_by_one(model):
    sequences, site = model.tokenize([Example(text=t) for t in TEXTS]), Site("resid", model.info.n_layers - 1)
    [packed] = TokenBatch.pack(sequences, length=sum(map(len, sequences)), rows=1)
    together = model.forward(packed, capture=[site])[site]
    left = model.forward(TokenBatch.pad(sequences, side="left"), capture=[site])
    right = model.forward(TokenBatch.pad(sequences), capture=[site])
    for index, sequence in enumerate(sequences):
        alone = model.forward(TokenBatch.pad([sequence]), capture=[site])[site][0]
        assert close(together[packed.segments == index], alone)
        assert close(left[site][index][left.batch.mask[index]], alone)
        assert close(right[site][index][right.batch.mask[index]], alone)


def test_it_answers_in_a_chat_and_ends_its_turn(model):
    asked = [Example(messages=(Message("user", "What is the capital of France? Answer in a short sentence."),), add_prompt=True),
             Example(messages=(Message("user", "Say hello."),), add_prompt=True)]
    answers = model.generate(model.tokenize(asked), sampling=Sampling(max_new=40))
    said = [model.tokenizer.decode(a.ids[a.flags["generated"] & ~a.flags["special"]]) for a in answers]
    assert "Paris" in said[0]
    assert model.tokenizer.decode(answers[0].ids[-1]) == "<|im_end|>"


def test_default_system_prompt_is_content(model):
    [found] = model.tokenize([Example(messages=(Message("user", "user <|im_end|>"),))])
    template = model.tokenizer.decode(found.ids[found.flags["special"]])
    assert template == "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n"


def test_gguf_path_is_the_same_model(model):
    other = LlamaAdapter(LlamaConfig(checkpoint=str(embedded())))
    assert other.info == model.info
    batch = model.batch([Example(text=TEXTS[0])])
    assert torch.equal(other.forward(batch).logits, model.forward(batch).logits)
