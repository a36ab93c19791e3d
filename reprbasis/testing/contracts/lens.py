"""The laws of lenses.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reprbasis.interfaces.lens import Lens
from reprbasis.sites import Site

from ..toys import LinearModel, contrast_batches, toy_model
from .base import ComponentContract


class LensContract(ComponentContract):
    """Suite of kind `lens`.

        class TestLogitLens(LensContract):
            name = "logit"

    A lens that must be trained overrides `make_lens`.
    """

    kind = "lens"

    def make_lens(self, model: LinearModel) -> Lens[Any]:
        """The lens, ready to read this model."""
        lens: Lens[Any] = self.create()
        return lens

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

    def test_reading_can_be_differentiated(self) -> None:
        """Gradients flow to the activations. If it fails, remove `no_grad` and `detach`: the caller decides."""
        model, lens, values, _ = self.world()
        x = values[Site("final")].clone().requires_grad_()
        [gradient] = torch.autograd.grad(lens.read(model, x, Site("final"))[..., 3].sum(), x)
        assert bool(gradient.isfinite().all() and gradient.any())
