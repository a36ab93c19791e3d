"""The laws of lenses.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import reprbasis
from reprbasis.artifacts.manifest import canonical
from reprbasis.interfaces.lens import Lens, LensFit
from reprbasis.sites import Site

from ..toys import LinearModel, contrast_batches, toy_activations, toy_model
from .base import ComponentContract


class LensContract(ComponentContract):
    """Suite of kind `lens`.

        class TestLogitLens(LensContract):
            name = "logit"

    A lens that learns is fitted to the activations of all sites of the toy model first.
    """

    kind = "lens"

    def make_lens(self, model: LinearModel) -> Lens[Any]:
        """The lens, ready to read this model."""
        lens: Lens[Any] = self.create()
        return lens.restore(self.fit(model))

    def fit(self, model: LinearModel) -> LensFit:
        """What the lens learns from activations of every site."""
        lens: Lens[Any] = self.create()
        return lens.fit(model, toy_activations(model), model.info.sites, seed=1)

    def world(self) -> tuple[LinearModel, Lens[Any], dict[Site, Tensor], Tensor]:
        """A model, the lens, the value of every site on a batch, and the logits."""
        model = toy_model()
        result = model.forward(contrast_batches(model)[0].clean, capture=model.info.sites)
        assert result.logits is not None
        return model, self.make_lens(model), dict(result.sites), result.logits

    def test_any_leading_dimensions(self) -> None:
        """[..., D] -> [..., V] for any leading dimensions, each vector on its own. If it fails: an axis is taken for granted."""
        model, lens, values, _ = self.world()
        for site, x in values.items():
            whole = lens.read(model, x, site)
            assert whole.shape == (*x.shape[:-1], model.info.vocab), site
            assert bool(whole.isfinite().all()), site
            assert torch.allclose(lens.read(model, x[0, 0], site), whole[0, 0], atol=1e-5), site
            assert torch.allclose(lens.read(model, x[None, :, :2], site), whole[None, :, :2], atol=1e-5), site

    def test_final_reads_as_the_logits(self) -> None:
        """At `final` a lens says what the model says. If it fails, the final norm is applied twice, or a bias is lost."""
        model, lens, values, logits = self.world()
        assert torch.allclose(lens.read(model, values[Site("final")], Site("final")), logits, atol=1e-4)

    def test_reading_is_deterministic_and_leaves_the_model(self) -> None:
        """Twice the same, and neither the model nor the activations are changed."""
        model, lens, values, _ = self.world()
        kept = {name: p.clone() for name, p in model.parameters().items()}
        for site, x in values.items():
            before = x.clone()
            assert torch.equal(lens.read(model, x, site), lens.read(model, x, site)), site
            assert torch.equal(x, before), site
        assert all(torch.equal(p, kept[name]) for name, p in model.parameters().items())

    def test_what_is_learned_survives_saving(self, tmp_path: Path) -> None:
        """Learned twice it is the same, and saved, loaded and restored it reads the same.

        If it fails, seed every draw by `seed`, and keep in the fit all that `read` needs.
        """
        model, lens, values, _ = self.world()
        one, two = self.fit(model), self.fit(model)
        assert canonical(one.facts()) == canonical(two.facts())
        assert one.values.keys() == two.values.keys()
        assert all(torch.equal(v, two.values[k]) for k, v in one.values.items())
        loaded = reprbasis.load(reprbasis.save(one, tmp_path / "fit"))
        assert isinstance(loaded, LensFit)
        again: Lens[Any] = self.create().restore(loaded)
        assert all(torch.equal(again.read(model, x, s), lens.read(model, x, s)) for s, x in values.items())

    def test_directions_have_no_scale(self) -> None:
        """[K, D] -> [K, V], centred over the vocabulary, the same for a direction of any length. If it fails, bring rows to one
        length before they are read, or leave `read_directions` as it is.
        """
        model, lens, values, _ = self.world()
        rows = torch.randn(3, model.info.d_model, generator=torch.Generator().manual_seed(0))
        for site in values:
            found = lens.read_directions(model, rows, site)
            assert found.shape == (3, model.info.vocab), site
            assert float(found.mean(-1).abs().max()) < 1e-4, site
            assert torch.allclose(lens.read_directions(model, 5 * rows, site), found, atol=1e-4), site

    def test_reading_can_be_differentiated(self) -> None:
        """Gradients flow to the activations. If it fails, remove `no_grad` and `detach`: the caller decides."""
        model, lens, values, _ = self.world()
        x = values[Site("final")].clone().requires_grad_()
        [gradient] = torch.autograd.grad(lens.read(model, x, Site("final"))[..., 3].sum(), x)
        assert bool(gradient.isfinite().all() and gradient.any())
