"""Editor `erase`: W <- W - strength Q Q^T W for everything that writes to the stream but the embedding.

Shapes: D residual width, R directions.
"""

import torch
from torch import Tensor

from reprbasis.errors import ShapeError, SiteError
from reprbasis.interfaces.editor import Editor, EditPlan, EditRequest
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.kits.components import answer_rows, unembedded
from reprbasis.kits.weights import delta_of
from reprbasis.runtime.basis import Basis

from .config import EraseConfig


class Erase(Editor[EraseConfig]):
    """Directional ablation in the weights (Arditi et al. 2024), output matrices and biases.

    It removes the direction whatever it serves: no scalpel where a direction is shared. Exact, idempotent at strength 1, blind to
    everything orthogonal to the directions.
    """

    @torch.no_grad()
    def edit(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> EditPlan:
        """See the class; the request's prompts are used only if no latents are named.

        Raises:
            ShapeError: a latent that the basis does not have.
            SiteError: a layer that the model does not have.
        """
        c, info = self.config, model.info
        layers = range(info.n_layers) if c.layers is None else c.layers
        if wrong := [i for i in layers if not 0 <= i < info.n_layers]:
            raise SiteError(f"the model has no layer {wrong[0]}", do=f"use layers from 0 to {info.n_layers - 1}")
        span = self._span(model, basis, request)
        deltas, share = {}, {}

        def erase(label: str, view: Tensor | None) -> None:
            """`view` [..., D, n]."""
            if view is None:
                return
            written = span @ (span.T @ view.double())
            name, delta = delta_of(model, view, -c.strength * written)
            deltas[name] = deltas[name] + delta if name in deltas else delta
            share[label] = float(written.square().sum() / view.double().square().sum().clamp_min(1e-300))

        for layer in layers:
            if c.writers != "mlp":
                attention = model.attention(layer)
                erase(f"attn_out.{layer}", attention.W_O)
                erase(f"attn_out.{layer} bias", None if attention.b_O is None else attention.b_O[:, None])
            if c.writers != "attention":
                mlp = model.mlp(layer)
                erase(f"mlp_out.{layer}", mlp.W_out)
                erase(f"mlp_out.{layer} bias", None if mlp.b_out is None else mlp.b_out[:, None])
        return EditPlan(deltas, {"editor": self.full_name, "locality": "closed", "options": c.model_dump(mode="json"),
                                 "directions": span.shape[1], "share_of_weight": share})

    def _span(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> Tensor:
        """[D, R] orthonormal."""
        chosen = list(self.config.latents)
        if wrong := [i for i in chosen if not 0 <= i < basis.d_dict]:
            raise ShapeError(f"the basis has {basis.d_dict} latents, {wrong[0]} is asked for",
                             do=f"choose latents from 0 to {basis.d_dict - 1}")
        if chosen:
            rows = basis.directions(basis.sites[0])[chosen].to(model.device)  # sites differ in scale alone
        else:
            up = unembedded(model)
            rows = torch.cat([answer_rows(up, item.targets) for item in request.change])
        left, size, _ = torch.linalg.svd(rows.double().T, full_matrices=False)
        return left[:, size > 1e-6 * size[0]]
