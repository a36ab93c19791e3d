"""The toys that the conformance suites trust."""

import pytest
import torch

from reprbasis.errors import DataError, SiteError
from reprbasis.interfaces.model import ModelAdapter, Replace, Sampling, Start
from reprbasis.interfaces.tokens import Example, Message, TokenBatch
from reprbasis.sites import Site
from reprbasis.testing.toys import (
    PLANTED,
    WordTokenizer,
    contrast_batches,
    interventions,
    margin,
    toy_activations,
    toy_basis,
    toy_model,
    trained_basis,
)

TEXTS = (" w1 w2 w3", " w4", " w9 w8 w7 w6 w5")


@pytest.fixture(scope="module")
def model():
    return toy_model()


def alone(model, text):
    return model.batch([Example(text=text)])


def test_the_stream_is_the_sum_of_its_writers(model):
    seen = model.forward(alone(model, TEXTS[2]), capture=model.info.sites)
    x = seen["embed"]
    for layer in range(2):
        x = x + seen.sites[Site("attn_out", layer)] + seen.sites[Site("mlp_out", layer)]
        assert torch.allclose(x, seen.sites[Site("resid", layer)], atol=1e-6)
    assert torch.allclose(seen["final"] @ model.unembedding().weight.T, seen.logits)


def test_every_site_is_linear_in_the_embeddings(model):
    batch = alone(model, TEXTS[2])
    a, b = (torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    out = [model.forward(batch, start=Start(Site("embed"), x)).logits for x in (a, b, 2 * a - 3 * b)]
    assert torch.allclose(2 * out[0] - 3 * out[1], out[2], atol=1e-4)


def test_packed_and_padded_texts_are_as_if_alone(model):
    sequences = model.tokenize([Example(text=t) for t in TEXTS])
    [packed] = TokenBatch.pack(sequences, length=9, rows=2)
    for batch in (packed, TokenBatch.pad(sequences, side="left"), TokenBatch.pad(sequences)):
        logits = model.forward(batch).logits
        for i, text in enumerate(TEXTS):
            assert torch.allclose(logits[batch.sequences == i], model.forward(alone(model, text)).logits[0], atol=1e-5)


def test_weights_explain_the_sites(model):
    batch = alone(model, TEXTS[2])
    seen = model.forward(batch, capture=model.info.sites)
    attention, mlp = model.attention(1), model.mlp(1)
    x = seen["resid.0"][0]
    pattern = (x @ attention.W_Q[0].T @ (x @ attention.W_K[0].T).T).masked_fill(torch.ones(5, 5).triu(1) > 0, -torch.inf)
    assert torch.allclose(pattern.softmax(-1) @ x @ attention.W_V[0].T @ attention.W_O[0].T, seen["attn_out.1"][0], atol=1e-5)
    assert torch.allclose(mlp.function(x + seen["attn_out.1"][0]), seen["mlp_out.1"][0], atol=1e-5)
    assert model.parameters()["1.W_out"].data_ptr() == mlp.W_out.data_ptr()


def test_forwards_can_be_cut_short_and_edited(model):
    batch, site = alone(model, TEXTS[0]), Site("resid", 0)
    short = model.forward(batch, capture=[site], stop_at=site)
    full = model.forward(batch, capture=[site])
    assert short.logits is None
    assert torch.equal(short[site], full[site])
    assert torch.equal(model.forward(batch, start=Start(site, full[site])).logits, full.logits)
    assert torch.allclose(model.forward(batch, logits="last").logits, full.logits[:, -1:], atol=1e-6)
    zero = model.forward(batch, edits=[Replace(site, torch.zeros(8))])
    assert torch.allclose(zero.logits, torch.zeros_like(zero.logits))
    for wrong in ({"capture": [Site("resid", 9)]}, {"capture": [Site("final")], "stop_at": site},
                  {"capture": [Site("embed")], "start": Start(site, full[site])},
                  {"start": Start(Site("mlp_out", 0), full[site])}):
        with pytest.raises(SiteError):
            model.forward(batch, **wrong)


def test_generation_takes_the_most_likely_token(model):
    prompts = model.tokenize([Example(text=t) for t in TEXTS])
    for prompt, whole in zip(prompts, model.generate(prompts, sampling=Sampling(max_new=4)), strict=True):
        logits = model.forward(TokenBatch.pad([whole])).logits[0, len(prompt) - 1:-1]
        assert whole.ids[len(prompt):].tolist() == logits.argmax(-1).tolist()
        assert whole.flags["generated"].tolist() == [i >= len(prompt) for i in range(len(whole))]
    warm = Sampling(max_new=6, temperature=1.0, seed=3)
    assert torch.equal(model.generate(prompts, sampling=warm)[0].ids, model.generate(prompts[:1], sampling=warm)[0].ids)
    cold = Sampling(max_new=4, temperature=1.0, top_p=1e-6)
    greedy = Sampling(max_new=4)
    assert torch.equal(model.generate(prompts, sampling=cold)[2].ids, model.generate(prompts, sampling=greedy)[2].ids)


def test_the_tokenizer_gives_text_back():
    tokenizer = WordTokenizer(20)
    text = "The keys, to the <|end|> cabinet"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.all_special_ids)
    spans = tokenizer(text, return_offsets_mapping=True).offset_mapping
    assert "".join(text[a:b] for a, b in spans) == text
    with pytest.raises(DataError, match="full"):
        tokenizer.encode(" a b c d e f g h i j k l m n o p q")


def test_dialogues_get_a_template(model):
    user, answer = Message("user", " w1"), Message("assistant", " w2 w3")
    [turn] = model.tokenize([Example(messages=(user, answer))])
    assert model.tokenizer.decode(turn.ids) == "<|user|> w1<|end|><|assistant|> w2 w3<|end|>"
    assert model.tokenizer.decode(turn.ids[turn.flags["assistant"]]) == " w2 w3"
    [asked] = model.tokenize([Example(messages=(user,), add_prompt=True)])
    assert turn.ids[:len(asked)].tolist() == asked.ids.tolist()


@pytest.mark.parametrize("baseline", ["corrupt", "zero"])
def test_interventions_add_up_on_a_linear_model(model, baseline):
    found = interventions(model, toy_basis(model, width=5), contrast_batches(model), margin(), baseline=baseline)
    for site, value in found.nodes.items():
        assert float(value.sum()) == pytest.approx(found.details["sites"][str(site)], abs=1e-4)


def test_only_planted_coordinates_matter():
    model = toy_model(planted=PLANTED)
    found = interventions(model, toy_basis(model, identity=True), contrast_batches(model), margin())
    for value in found.nodes.values():
        assert value.abs().topk(2).indices.sort().values.tolist() == list(PLANTED)
        assert float(value[list(PLANTED)].min()) > 1
        others = [i for i in range(9) if i not in PLANTED]
        assert float(value[others].abs().max()) < 1e-5


def test_a_toy_training_learns_something(model, tmp_path):
    activations = toy_activations(model, tmp_path)
    assert activations.sequences("held-out")
    basis = trained_basis(activations)
    x = activations.read(basis.sites[3], 0)
    fvu = (x - basis.decode(basis.sites[3], basis.encode(basis.sites[3], x))).square().sum() / (x - x.mean(0)).square().sum()
    assert float(fvu) < 0.9
    assert isinstance(model, ModelAdapter)
