"""Held-out text, rows of activations, and what sites read as."""

import json

import pytest
import torch
from transformers import LlamaConfig

import reprbasis as rb
from reprbasis.cli.main import main
from reprbasis.interfaces.evaluator import EvaluationInputs
from reprbasis.interfaces.lens import LensFit
from reprbasis.interfaces.tokens import Example, TokenSequence
from reprbasis.kits.heldout import HeldOut
from reprbasis.runtime.reading import labels, read_text
from reprbasis.sites import Site
from reprbasis.testing.models import tiny_checkpoint
from reprbasis.testing.toys import toy_activations, toy_model, trained_basis

SITES = (Site("resid", 0), Site("resid", 1))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    model = toy_model()
    activations = toy_activations(model, tmp_path_factory.mktemp("acts"))
    return model, activations, EvaluationInputs(model, trained_basis(activations), activations)


def test_rows_are_taken_from_any_shard_in_any_order(world):
    _, activations, _ = world
    assert len(activations.shards) > 1
    whole = torch.cat([activations.read(SITES[0], i) for i in range(len(activations.shards))])
    rows = torch.randperm(activations.tokens, generator=torch.Generator().manual_seed(0))[:90]
    assert torch.equal(activations.take(SITES[0], rows), whole[rows])
    assert torch.equal(activations.take(SITES[0], rows[:1].repeat(3)), whole[rows[:1]].expand(3, -1))


def test_fresh_rows_are_neither_first_nor_repeated(world):
    _, activations, _ = world
    fresh = activations.fresh()
    assert (activations.table.positions[fresh] > 0).all()
    assert not activations.table.repeats[fresh].any()


def test_held_out_rows_belong_to_their_tokens(world):
    model, activations, inputs = world
    text = HeldOut.run(inputs, SITES, tokens=60, sequence_tokens=10)
    first = activations.sequences("held-out")[0].cut(10)
    mine = text.group == first.sequence
    assert torch.equal(text.ids[mine], first.ids)
    assert torch.equal(text.following[mine][:-1], first.ids[1:])
    assert text.following[mine][-1] == -1
    alone = model.forward(rb.interfaces.tokens.TokenBatch.pad([first]), capture=SITES)
    assert torch.allclose(text.rows[SITES[1]][mine], alone[SITES[1]][0], atol=1e-5)
    assert not (text.body & text.first).any()
    assert len(text.ids) <= 60


def test_the_last_site_reads_as_what_the_model_says(world):
    model, *_ = world
    [sequence] = model.tokenize([Example(text=" w1 w2 w3 w4")])
    reading = read_text(model, sequence, {"logit": rb.create("lens", "logit")}, SITES, top=3)
    assert list(reading.tokens) == [" w1", " w2", " w3", " w4"]
    assert [c[0][0] for c in reading.cells["logit"][1]] == [c[0][0] for c in reading.said]
    figure = reading.figure()
    assert figure.kind == "grid"
    assert figure.y[0] == "resid.1"
    assert all(cell[3] for cell in figure.series["logit"][0])
    last = read_text(model, sequence, {"logit": rb.create("lens", "logit")}, SITES, positions=[-1])
    assert list(last.positions) == [3]
    assert last.said[0][0] == reading.said[3][0]


def test_image_tokens_are_named_by_their_place(world):
    model, *_ = world
    flags = {"image": torch.tensor([False, True, True, True, True, False])}
    sequence = TokenSequence(torch.arange(4, 10), flags, extra={"image_grid": torch.tensor([[2, 2]])})
    assert labels(model, sequence)[1:5] == ["▦0:0", "▦0:1", "▦1:0", "▦1:1"]


def test_a_fit_that_does_not_know_its_lens_says_so():
    with pytest.raises(rb.errors.ArtifactError, match="which lens"):
        LensFit().lens(rb.registry())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(tiny_checkpoint(tmp_path_factory.mktemp("m") / "tiny", LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)))


def test_the_command_prints_a_table_and_writes_a_page(checkpoint, tmp_path, capsys):
    assert main(["lens", checkpoint, "The keys are", "--html", str(tmp_path / "lens.html")]) == 0
    out = capsys.readouterr().out
    assert "resid.2" in out
    assert "next:" in out
    assert '"kind":"grid"' in (tmp_path / "lens.html").read_text("utf-8")


def test_the_command_gives_json(checkpoint, capsys):
    assert main(["lens", checkpoint, "The keys are", "--sites", "resid.-1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sites"] == ["resid.2"]
    assert found["cells"]["logit"][0][-1][0][0] == found["said"][-1][0][0]


def test_the_command_reads_a_saved_lens_and_a_latent(checkpoint, tmp_path, capsys):
    model = rb.create("model", "llama", checkpoint=checkpoint)
    acts = rb.harvest(model, rb.create("corpus", "chat", limit=30), sites="resid.*", tokens=800, folder=tmp_path / "acts")
    lens = rb.create("lens", "ridge")
    fit = lens.fit(model, acts, acts.sites)
    rb.save(LensFit(fit.values, {"lens": {"use": "ridge"}}), tmp_path / "fit")
    rb.save(rb.fit(rb.create("learner", "relu", width=16), acts, rows=1024, batch=256), tmp_path / "basis")
    assert main(["lens", checkpoint, "The keys are", "--fit", str(tmp_path / "fit")]) == 0
    assert capsys.readouterr().out.startswith("ridge")
    assert main(["lens", checkpoint, "--basis", str(tmp_path / "basis"), "--latent", "3", "--json"]) == 0
    assert {f["latent"] for f in json.loads(capsys.readouterr().out)} == {3}


@pytest.mark.parametrize(("arguments", "message"), [
    (["x"], "nothing to read"), (["x", "text", "--latent", "1"], "nothing to read"), (["x", "--latent", "1"], "needs the basis"),
    (["x", "text", "--top", "0"], "keeps nothing")])
def test_the_command_says_what_is_wrong(arguments, message, capsys):
    assert main(["lens", *arguments]) == 2
    assert message in capsys.readouterr().err
