"""Rows of two models belong together where their tokens end at the same character."""

import json

import pytest
import torch

import reprbasis as rb
from reprbasis.cli.main import main
from reprbasis.errors import DataError
from reprbasis.interfaces.tokens import Example, Message, TokenSequence
from reprbasis.runtime.pairs import Coverage, PairedRows, match, paired
from reprbasis.testing.toys import toy_model


def sequence(ends, special=()):
    starts = [0, *ends[:-1]]
    flags = {"special": torch.tensor([i in special for i in range(len(ends))])}
    spans = torch.tensor([[-1, -1] if i in special else [s, e] for i, (s, e) in enumerate(zip(starts, ends, strict=True))])
    return TokenSequence(torch.arange(len(ends)), flags, offsets=spans)


def test_matched_tokens_end_together_and_coverage_is_exact():
    """`the cats sleep` as the| cats| sl|eep and as (special) th|e| ca|ts| sleep."""
    a, b = sequence([3, 8, 11, 14]), sequence([0, 2, 3, 6, 8, 14], special={0})
    i, j, could_a, could_b = match(a, b)
    assert [(int(x), int(y)) for x, y in zip(i, j, strict=True)] == [(1, 4), (3, 5)]
    assert a.offsets[i, 1].tolist() == b.offsets[j, 1].tolist() == [8, 14]
    assert (could_a, could_b) == (3, 5)  # position 0 and special tokens could not have matched


def test_pieces_of_one_character_count_once():
    """Byte tokens of one character share its span: the last has read the whole."""
    spans = torch.tensor([[0, 1], [1, 2], [1, 2], [2, 3]])
    a = TokenSequence(torch.arange(4), {}, offsets=spans)
    i, j, *_ = match(a, sequence([1, 2, 3]))
    assert i.tolist() == [2, 3]
    assert j.tolist() == [1, 2]


def test_rows_are_those_of_single_runs(checkpoint):
    model = rb.create("model", "llama", checkpoint=str(checkpoint))
    texts = [Example(text=t) for t in ("one two three", "four", "five six seven eight nine")]
    sites = list(model.info.sites)[:3]
    lengths = [len(s) for s in model.tokenize(texts)]
    coverage = Coverage()
    found = list(paired(model, model, texts, sites, sites[:1], tokens=1000, coverage=coverage, together=2))
    group = torch.cat([b.group for b in found])
    assert [int((group == i).sum()) for i in range(3)] == [n - 1 for n in lengths]  # all but position 0
    assert coverage.shares() == (1.0, 1.0)
    for batch in found:
        assert torch.equal(batch.a[sites[0]], batch.b[sites[0]])
    alone = model.forward(model.batch(texts[2:]), capture=sites)
    assert torch.allclose(found[1].a[sites[2]], alone.sites[sites[2]][0, 1:], atol=1e-5)


def test_pairs_with_a_row_of_unusual_length_are_left_out_on_both_sides(checkpoint):
    model = rb.create("model", "llama", checkpoint=str(checkpoint))
    texts = [Example(text=t) for t in ("one two three", "four five", "five six seven eight nine", "six seven", "three four")]
    one, two = model.info.sites[1], model.info.sites[2]
    every = PairedRows.gather(model, model, texts, [one], [two], tokens=1000, norm_cap=1e9)
    assert every.outliers == 0
    cap = 1.05
    norms = [x.norm(dim=-1) for x in (every.a[one], every.b[two])]
    usual = (norms[0] <= cap * norms[0].median()) & (norms[1] <= cap * norms[1].median())
    assert 0 < int((~usual).sum()) < len(usual)
    kept = PairedRows.gather(model, model, texts, [one], [two], tokens=1000, norm_cap=cap)
    assert kept.outliers == int((~usual).sum())
    assert torch.equal(kept.a[one], every.a[one][usual])
    assert torch.equal(kept.b[two], every.b[two][usual])
    assert torch.equal(kept.group, every.group[usual])
    assert torch.equal(kept.tokens, every.tokens[usual])


def test_refusals():
    model = toy_model()
    with pytest.raises(DataError, match="template of its own"):
        next(paired(model, model, [Example(messages=(Message("user", "a"),), origin="f:1")], model.info.sites, model.info.sites,
                    tokens=5))
    with pytest.raises(DataError, match="second model's tokenizer gives no character offsets"):
        match(sequence([1, 2]), TokenSequence(torch.arange(2)))


@pytest.fixture
def text(tmp_path):
    generator = torch.Generator().manual_seed(0)
    words = ["the", "a", "cat", "dog", "sees", "hears", "red", "blue", "and", "then", "runs", "sits", "under", "house"]
    lines = [" ".join(words[i] for i in torch.randint(len(words), (30,), generator=generator)) for _ in range(60)]
    path = tmp_path / "t.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"{{use: text, path: {path}, unit: line}}"


def test_align_on_the_command_line(text, tmp_path, checkpoint, capsys):
    """A model aligns with itself at one site, perfectly; and the map is saved with its facts."""
    assert main(["align", str(checkpoint), str(checkpoint), "--corpus", text, "--site", "resid.0", "--tokens", "1000",
                 "--aligner", "procrustes", "--out", str(tmp_path / "maps")]) == 0
    out = capsys.readouterr().out
    assert "resid.0 -> resid.0, procrustes" in out
    assert "aligned: held-out cosine 1.000" in out
    alignment = rb.load(tmp_path / "maps" / "resid.0__resid.0__procrustes")
    assert torch.allclose(alignment.matrix, torch.eye(len(alignment.matrix)), atol=1e-4)
    assert alignment.details["coverage"] == [1.0, 1.0]


def test_layers_are_matched_and_a_page_is_written(text, tmp_path, checkpoint, capsys):
    """Every layer's best partner is itself; the page holds heatmap, tables and figures, and needs nothing else."""
    page = tmp_path / "page" / "align.html"
    assert main(["align", str(checkpoint), str(checkpoint), "--corpus", text, "--match", "resid.*", "--tokens", "1000",
                 "--aligner", "procrustes", "--aligner", "relative", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert all(f"resid.{i} -> resid.{i}, relative" in out for i in range(3))
    assert "mean centred cosine on validation texts" in out
    html = page.read_text("utf-8")
    assert all(words in html for words in ("Which layers correspond", "cosine by site", "same-frequency", "reprbasis align"))
    assert not any(words in html for words in ("<script src", "<link", "@import"))


def test_maps_from_the_vocabulary_alone(text, checkpoint, capsys):
    assert main(["align", str(checkpoint), str(checkpoint), "--corpus", text, "--site", "final", "--tokens", "1000", "--anchors",
                 "vocabulary", "--aligner", "unembedding", "--aligner", "procrustes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shared_tokens"] > 50
    assert [r["name"] for r in found["results"]] == ["unembedding", "procrustes"]
    assert all(r["verdict"].startswith("aligned: held-out cosine 1.000") for r in found["results"])


def test_the_gain_of_the_last_norm_is_taken_off(checkpoint):
    """Two models that differ in that gain alone have one `final` space; without folding they do not."""
    models = [rb.create("model", "llama", checkpoint=str(checkpoint)) for _ in range(2)]
    with torch.no_grad():
        models[1].unembedding().gain.mul_(torch.linspace(0.2, 3, models[1].info.d_model))
    final, texts = models[0].info.select("final"), [Example(text="one two three")]
    folded, plainly = (next(paired(*models, texts, final, final, tokens=2, fold=f)) for f in (True, False))
    assert torch.allclose(folded.a[final[0]], folded.b[final[0]], atol=1e-5)
    assert not torch.allclose(plainly.a[final[0]], plainly.b[final[0]], atol=0.1)


@pytest.mark.parametrize(("change", "words"), [
    (["--match", "resid.*", "--site", "resid.0"], "one of them"), (["--aligner", "unembedding"], "--anchors vocabulary"),
    (["--site", "resid.99"], "resid.99"), (["--site", "resid.*"], "names 3 sites"), (["--tokens", "5"], "at least 100"),
    (["--aligner", "procrust"], "procrustes")])
def test_wrong_arguments(text, checkpoint, capsys, change, words):
    assert main(["align", str(checkpoint), str(checkpoint), "--corpus", text, *change]) == 2
    assert words in capsys.readouterr().err
