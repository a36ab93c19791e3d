"""RMU: representation misdirection for unlearning (Li et al. 2024, section 4).

    E |h(x_forget) - c u|^2 + alpha E |h(x_keep) - h_0(x_keep)|^2       h: stream after a layer, u: a random unit vector

Shapes: B batch, T tokens, D residual width.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from reprbasis.errors import SiteError
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.prefixes import longest
from reprbasis.kits.weights import parameter_of
from reprbasis.sites import Site

from .config import RMUConfig
from .train import Trained


class RMU(Trained[RMUConfig]):
    """Trains the output matrices of the MLPs of three layers; gradients go from the highest of them down."""

    locality: ClassVar[str] = "truncated back-propagation"

    def layer(self, model: ModelAdapter) -> int:
        """Whose stream is steered."""
        found = max(2, model.info.n_layers // 4) if self.config.layer is None else self.config.layer
        found = min(found, model.info.n_layers - 1) if self.config.layer is None else found
        if found >= model.info.n_layers:
            raise SiteError(f"the model has no layer {found}", do=f"use 0 to {model.info.n_layers - 1}")
        return found

    def trainable(self, model: ModelAdapter) -> list[str]:
        top = self.layer(model)
        return [parameter_of(model, model.mlp(i).W_out) for i in range(max(0, top - 2), top + 1)]

    def stream(self, model: ModelAdapter, batch: TokenBatch, *, grad: bool) -> Tensor:
        """[tokens, D] without position 0."""
        site = Site("resid", self.layer(model))
        x = model.forward(batch, capture=[site], stop_at=site, grad=grad, logits="none")[site]
        return x[batch.mask & (batch.positions > 0)].float()

    def before(self, model: ModelAdapter, item: ContrastBatch, text: TokenBatch | None) -> Mapping[str, Tensor]:
        return {} if text is None else {"text": self.stream(model, text, grad=False)}

    def loss(self, model: ModelAdapter, item: ContrastBatch, text: TokenBatch | None, before: Mapping[str, Tensor]) -> Tensor:
        c, x = self.config, self.stream(model, longest(item.clean)[0], grad=True)
        u = torch.rand(x.shape[-1], generator=torch.Generator().manual_seed(c.seed)).to(x)  # uniform, as in the authors' code
        loss = (x - c.coefficient * u / u.norm()).square().mean()
        if text is not None:
            loss = loss + c.retain_weight * (self.stream(model, text, grad=True) - before["text"]).square().mean()
        return loss
