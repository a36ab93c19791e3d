"""Pieces by which moved things are judged; the whole is tested on gauge copies in reprbasis-aligners."""

import pytest
import torch

import reprbasis as rb
from reprbasis.errors import CapabilityError, DataError, ShapeError, SiteError
from reprbasis.interfaces.aligner import Alignment
from reprbasis.interfaces.tokens import Example
from reprbasis.kits.transfer import transfer_basis, transfer_table
from reprbasis.kits.transferred import Add, BeyondFirst, Contrast, Neutral, first_tokens, fit_width, rank_correlation, solve
from reprbasis.sites import Site
from reprbasis.testing.toys import toy_activations, toy_model, trained_basis


def test_rank_correlation_by_hand():
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    y = torch.tensor([[10.0, 30.0, 20.0, 40.0], [1.0, 1.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    assert rank_correlation(x, y).tolist() == pytest.approx([0.8, 1.0, 0.0])


def test_solve_finds_the_length():
    assert solve(lambda s: s * s, 4.0, 0.5) == pytest.approx(2, rel=0.02)
    for curve in (lambda s: s ** 4, lambda s: s / (1 + s), lambda s: s ** 2 if s < 1 else s):
        for start in (0.1, 1.0, 30.0):
            assert curve(solve(curve, 0.7, start)) == pytest.approx(0.7, rel=0.02)
    assert solve(lambda s: 0.0, 1.0, 1.0) is None


def test_edits_touch_what_they_name(checkpoint):
    """Rows of two lengths: the last token of each, or all but position 0."""
    model = rb.create("model", "llama", checkpoint=str(checkpoint))
    site = Site("resid", 0)
    batch = model.batch([Example(text="one two three four"), Example(text="five")])
    before = model.forward(batch, capture=[site])[site]
    for edit, where in ((Add(site, torch.ones(before.shape[-1]), "last"), torch.arange(before.shape[1]) == batch.last()[:, None]),
                        (BeyondFirst(Add(site, torch.ones(before.shape[-1]))), batch.positions > 0)):
        changed = (model.forward(batch, capture=[site], edits=[edit])[site] - before).abs().amax(-1) > 0.5
        assert torch.equal(changed & batch.mask, where & batch.mask)


def test_words_are_first_tokens(checkpoint):
    model = rb.create("model", "llama", checkpoint=str(checkpoint))
    assert first_tokens(model, [" a", " ab"]) == [model.tokenizer(" a", add_special_tokens=False)["input_ids"][0]]
    same = Contrast("x", ["a b"] * 4, ["c d"] * 4, [" a"], [" a"])
    with pytest.raises(DataError, match="both sides"):
        same.effect(model)


def test_a_head_gets_what_its_likest_has():
    alike = torch.tensor([[0.9, 0.1], [0.2, 0.5], [0.1, -0.8]])
    assert transfer_table(torch.tensor([1.0, 2.0, 3.0]), alike).tolist() == pytest.approx([0.9, 1.0])
    assert fit_width(torch.tensor([1.0, 2.0]), 3).tolist() == [1, 2, 0]
    assert fit_width(torch.tensor([1.0, 2.0]), 1).tolist() == [1]


def test_what_cannot_be_moved_is_refused(tmp_path):
    basis = trained_basis(toy_activations(toy_model(), tmp_path))
    eye = torch.eye(basis.d_in)
    alignment = Alignment(eye, eye, torch.zeros(len(eye)), torch.zeros(len(eye)))
    with pytest.raises(SiteError, match="name the site"):
        transfer_basis(basis, alignment, Site("resid", 0))
    with pytest.raises(CapabilityError, match="not affine"):  # a dictionary of its own kind
        transfer_basis(basis, alignment, Site("resid", 0), source=basis.sites[0])
    acts = toy_activations(toy_model(), tmp_path / "more")
    affine = rb.fit(rb.create("learner", "relu", width=8), acts, rows=512, batch=64, buffer=512)
    wide = Alignment(torch.ones(3, 4), torch.ones(4, 3), torch.zeros(3), torch.zeros(4))
    with pytest.raises(ShapeError, match="width 3"):
        transfer_basis(affine, wide, Site("resid", 0), source=affine.sites[0])


def test_neutral_text_is_run_from_the_edited_site_on(checkpoint):
    """The same numbers as with a whole forward; an edit elsewhere is not lost."""
    model = rb.create("model", "llama", checkpoint=str(checkpoint))
    v, site = torch.linspace(-1, 1, model.info.d_model), Site("resid", 1)
    whole, short = (Neutral(model, ["one two three", "four five"], s) for s in (None, site))
    for where in (site, Site("resid", 0)):
        assert torch.allclose(whole.compare([Add(where, v)])[1], short.compare([Add(where, v)])[1], atol=1e-5)
    assert short.kl([Add(site, v)]) > 0.01
