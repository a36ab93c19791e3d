"""The numbered cases that an alignment must pass. Rows of independent or rotated Gaussians, tiny random models, gauge copies.

Other cases: independent spaces, a rotation under noise, widths 96 and 128 (test_maps); offsets (the core's test_pairs).
"""

import pytest
import torch

import reprbasis as rb
from reprbasis.errors import DataError
from reprbasis.interfaces.tokens import Example
from reprbasis.kits.alignment import judge, match_layers, train_scores
from reprbasis.kits.anchors import vocabulary_rows
from reprbasis.kits.transfer import head_similarity, transfer_basis, transfer_table
from reprbasis.kits.transferred import (
    Add,
    Contrast,
    Neutral,
    controls,
    same_features,
    steering,
    steering_vectors,
    stitched,
    table_agreement,
)
from reprbasis.runtime.pairs import PairedRows
from reprbasis.sites import Site
from reprbasis.testing.gauge import gauge_copy
from reprbasis.testing.models import tiny_checkpoint, tiny_config

WORDS = ["the", "a", "cat", "dog", "sees", "hears", "red", "blue", "and", "then", "runs", "sits", "under", "house", "keys", "on",
         "table", "capital", "France", "number", "def", "return"]


def gaussians(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d, seed=99):
    return torch.linalg.qr(gaussians(d, d, seed)).Q


def texts(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [Example(text=" ".join(WORDS[i] for i in torch.randint(len(WORDS), (40,), generator=generator))) for _ in range(n)]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def copies(request, tmp_path_factory):
    """A tiny model, its rotated copy, and one rotated without folding; float64 throughout."""
    folder = tmp_path_factory.mktemp("gauge")
    changes = {"tie_word_embeddings": True} if request.param == "llama" else {"head_dim": 12}
    source = tiny_checkpoint(folder / "a", tiny_config(request.param, **changes))
    turn = rotation(32)
    where = [source, gauge_copy(source, folder / "b", turn, dtype=torch.float64),
             gauge_copy(source, folder / "c", turn, fold=False, dtype=torch.float64)]
    name = "llama" if request.param == "llama" else "qwen"
    return [rb.create("model", name, checkpoint=str(w), dtype="float64") for w in where], turn


def test_a_gauge_copy_computes_the_same_and_its_rotation_is_found(copies):
    """Logits to 1e-5; the rotation from activations at every site to 1e-6, from unembedding rows to 1e-10; unfolded: neither."""
    (a, b, unfolded), turn = copies
    batch = a.batch(texts(4))
    logits = [m.forward(batch).logits for m in (a, b, unfolded)]
    assert float((logits[0] - logits[1]).abs().max()) < 1e-5
    assert float((logits[0] - logits[2]).abs().max()) > 1
    sites = [s for s in a.info.sites if s.name in ("embed", "resid", "final")]
    rows = PairedRows.gather(a, b, texts(40), sites, sites, tokens=1000)
    for site in sites:
        found = rb.create("aligner", "procrustes").fit(rows.a[site].double(), rows.b[site].double())
        assert float((found.matrix - turn).abs().max()) < 1e-6, site
    w_a, w_b, shared = vocabulary_rows(a, b)
    assert shared.share_a == shared.share_b
    assert float((rb.create("aligner", "procrustes").fit(w_a, w_b).matrix - turn).abs().max()) < 1e-10
    last = sites[-2]
    rows = PairedRows.gather(a, unfolded, texts(40), [last], [last], tokens=1000)
    found = rb.create("aligner", "procrustes").fit(rows.a[last], rows.b[last])
    assert float((found.matrix - turn).abs().max()) > 0.05


@pytest.mark.parametrize("n", [20, 48])
def test_few_pairs_are_no_evidence(n):
    """n < d: the map warns, a train score is refused, and the judge lists none; independent rows do not align."""
    d = 64
    aligner = rb.create("aligner", "procrustes")
    a, b = gaussians(n, d, 0), gaussians(n, d, 1)
    found = aligner.fit(a, b)
    assert "fewer than 8" in found.details["warning"]
    with pytest.raises(DataError, match="says nothing"):
        train_scores(found, a, b)
    _, measured = judge(aligner, (a, b), (gaussians(200, d, 2), gaussians(200, d, 3)), torch.arange(200) // 10)
    assert "train" not in {m.condition for m in measured}
    many = gaussians(8 * d, d, 4), gaussians(8 * d, d, 5)
    assert {m.name for m in train_scores(aligner.fit(*many), *many)} == {"r2", "cosine"}


def test_permuted_rows_retrieve_nothing():
    """Broken pairing: retrieval at chance, 1/n; and with the pairing kept within frequencies the control is reported."""
    d, n = 32, 2000
    a = gaussians(n, d, 0)
    b = (a @ rotation(d))[torch.randperm(n, generator=torch.Generator().manual_seed(1))]
    held = torch.arange(n) % 5 == 4
    tokens = (gaussians(n, 1, 2).abs()[:, 0] * 12).long()
    _, found = judge(rb.create("aligner", "procrustes"), (a[~held], b[~held]), (a[held], b[held]), torch.arange(n)[held] // 25,
                     tokens=tokens[~held])
    at_one = {m.condition: m.value for m in found if m.name == "retrieval@1"}
    assert at_one["map"] < 5 / 400
    assert at_one["same-frequency"] < 5 / 400


def test_a_steering_vector_moves_with_the_rotation(copies):
    """R v in the copy changes the logits as v does in the original, to 1e-4; a random vector does not."""
    (a, b, _), _ = copies
    site = Site("resid", 1)
    rows = PairedRows.gather(a, b, texts(40), [site], [site], tokens=1000)
    found = rb.create("aligner", "procrustes").fit(rows.a[site].double(), rows.b[site].double())
    batch, v = a.batch(texts(4, seed=1)), 3 * gaussians(1, 32, 7)[0]
    change = [m.forward(batch, edits=[Add(site, x)]).logits - m.forward(batch).logits
              for m, x in ((a, v), (b, found.direction(v)), (b, 3 * gaussians(1, 32, 8)[0]))]
    assert float(change[0].abs().max()) > 0.1
    assert float((change[0] - change[1]).abs().max()) < 1e-4
    assert float((change[0] - change[2]).abs().max()) > 0.1
    assert torch.allclose(found.direction_back(found.direction(v)), v, atol=1e-6)


def test_matching_finds_the_layer(copies):
    (a, b, _), _ = copies
    sites = a.info.select("resid.*")
    rows = PairedRows.gather(a, b, texts(40), sites, sites, tokens=1000)
    assert not bool((rows.train & rows.validation).any() | (rows.train & rows.test).any() | (rows.validation & rows.test).any())
    match = match_layers(rb.create("aligner", "procrustes"), rows.a, rows.b, rows.train, rows.validation)
    assert match.best() == {s: s for s in sites}
    assert float(match.cosine.diagonal().min()) > 0.999


def test_heads_of_the_copy_are_recognised(copies):
    """The OV matrices of all heads move with the rotation: each is its own best match, and a table moves without loss."""
    (a, b, _), _ = copies
    rows = PairedRows.gather(a, b, texts(40), [Site("resid", 1)], [Site("resid", 1)], tokens=1000)
    found = rb.create("aligner", "procrustes").fit(rows.a[Site("resid", 1)], rows.b[Site("resid", 1)])
    alike = head_similarity(a, b, {Site("resid", 1): found})
    heads = a.info.n_layers * a.info.n_heads
    assert alike.shape == (heads, heads)
    assert torch.allclose(alike.diagonal(), torch.ones(heads), atol=1e-3)
    assert alike.argmax(0).tolist() == list(range(heads))
    table = gaussians(1, heads, 3)[0].view(a.info.n_layers, -1)
    assert torch.allclose(transfer_table(table, alike.double()), table.flatten(), atol=1e-2)
    rows = table_agreement(table.flatten(), {"mapped": transfer_table(table, alike.double()),
                                             "random": table.flatten()[torch.randperm(heads)]})
    assert rows[0].value > 0.99
    assert rows[1].value < 0.9


@pytest.mark.parametrize("learner", ["relu", "topk"])
def test_a_dictionary_moves_with_the_map(copies, learner, tmp_path):
    """`encode` is that of the first model on `backward(y)`, `decode` is `forward` of its decoding; it survives saving."""
    (a, b, _), _ = copies
    site, there = Site("resid", 0), Site("resid", 2)
    acts = rb.harvest(a, texts(40), sites=["resid.0", "resid.1"], tokens=1000)
    options = {"k": 4} if learner == "topk" else {}
    basis = rb.fit(rb.create("learner", learner, width=48, **options), acts, rows=4000, batch=200, buffer=2000,
                   capabilities=frozenset({"affine-decoder"}))
    rows = PairedRows.gather(a, b, texts(40, seed=1), [site], [there, site], tokens=1000)
    alignment = rb.create("aligner", "affine").fit(rows.a[site], rows.b[there])
    moved = transfer_basis(basis, alignment, there, source=site)
    y = rows.b[there]
    z = basis.encode(site, alignment.backward(y))
    assert float((moved.encode(there, y) - z).abs().max()) < 1e-3
    assert torch.allclose(moved.decode(there, z), alignment.forward(basis.decode(site, z)), atol=1e-3)
    again = rb.load(rb.save(moved, tmp_path / "moved"))
    assert torch.equal(again.encode(there, y), moved.encode(there, y))
    assert torch.allclose(moved.directions(there), alignment.direction(basis.directions(site)), atol=1e-4)


def test_transfer_to_the_copy_is_complete_and_controls_are_not(copies):
    """Steering and a dictionary on a gauge copy: as good as native; random, wrong and unmapped ones are worse."""
    (a, b, _), _ = copies
    site = Site("resid", 1)
    rows = PairedRows.gather(a, b, texts(60), [site], [site], tokens=1500)
    alignment = rb.create("aligner", "procrustes").fit(rows.a[site], rows.b[site])
    few = WORDS[:12]
    one = Contrast("animals", [f"the {x} cat" for x in few], [f"the {x} house" for x in few], [" sees", " runs"], [" on"])
    two = Contrast("place", [f"{x} under the table" for x in few], [f"{x} def number" for x in few], [" a"], [" the"])
    neutral = Neutral(b, [e.text for e in texts(6, seed=3)])
    vectors = steering_vectors(a, b, alignment, site, site, one, two)
    found = {(m.name, m.condition): m.value for m in steering(b, site, one, vectors, neutral, strength=4)}
    assert found["ratio", "native"] == pytest.approx(1)
    assert found["ratio", "mapped"] == pytest.approx(1, abs=1e-3)
    assert found["kl", "mapped"] == pytest.approx(found["kl", "native"], rel=1e-3)
    assert found["ratio-at-kl", "mapped"] == pytest.approx(1, abs=0.01)
    for control in ("wrong-feature", "random", "unmapped"):
        assert abs(found["ratio", control] - 1) > 0.1
    acts = rb.harvest(a, texts(60), sites=["resid.1"], tokens=1500)
    basis = rb.fit(rb.create("learner", "relu", width=64), acts, rows=20000, batch=200, buffer=4000,
                   capabilities=frozenset({"affine-decoder"}))
    bases = controls(basis, alignment, site)
    held = rows.test
    measured = stitched(b, bases, rows.b[site][held], rows.group[held], neutral, rows.b[site][~held].mean(0))
    fvu = {m.condition: m.value for m in measured if m.name == "fvu"}
    mine = basis.decode(site, basis.encode(site, rows.a[site][held])) - rows.a[site][held]
    original = float(mine.square().sum() / (rows.a[site][held] - rows.a[site][~held].mean(0)).square().sum())
    assert fvu["mapped"] == pytest.approx(original, abs=1e-3)
    assert all(fvu[c] > fvu["mapped"] + 0.1 for c in ("wrong-feature", "random", "unmapped"))
    same = {(m.name, m.condition): m.value for m in same_features(basis, bases["mapped"], rows)}
    assert same["code-correlation", "mapped"] > 0.999
    assert same["code-correlation", "permuted"] < 0.3
