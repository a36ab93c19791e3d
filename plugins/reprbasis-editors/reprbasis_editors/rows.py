"""Editor `feature-rows`: take a feature out of what MLP neurons write, in dictionary coordinates.

Shapes: D residual width, M MLP width, K latents, N neurons chosen.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reprbasis.errors import DataError, ShapeError, SiteError
from reprbasis.interfaces.editor import EditPlan, EditRequest
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.weights import delta_of
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import FeatureRowsConfig
from .parts import targets_of
from .scaled import Direction, ScaledEditor
from .search import Judge


class FeatureRows(ScaledEditor[FeatureRowsConfig]):
    """The neurons whose output vectors lie most along a latent are encoded, the latent is set to 0, and they are decoded again.

    After PISCES (Gur-Arieh et al. 2025): the reconstruction error is put back, so nothing but the latent changes; strength 1
    takes it away, 2 turns it around. Forward passes are needed for the search of the strength alone.
    """

    def direction(self, model: ModelAdapter, basis: Basis, request: EditRequest, texts: Sequence[TokenBatch],
                  judge: Judge) -> Direction:
        """The change of the output matrices."""
        layers = self._layers(model, basis)
        chosen = self._latents(model, basis, request)
        deltas: dict[str, Tensor] = {}
        neurons = {}
        for layer, site in layers.items():
            weights = model.mlp(layer).W_out
            change, count = self._change(basis, site, weights.detach().float(), list(chosen))
            name, delta = delta_of(model, weights, change)
            deltas[name] = delta
            neurons[f"mlp.{layer}"] = count
        plan = EditPlan(deltas)
        return Direction(lambda which: plan, {"latents": {str(k): v for k, v in chosen.items()}, "neurons": neurons})

    def _change(self, basis: Basis, site: Site, weights: Tensor, latents: list[int]) -> tuple[Tensor, int]:
        """[D, M] and how many neurons are changed. Each is encoded at the length of the site's usual value, both ways round."""
        index = basis.index(site)
        usual = float(basis.d_in**0.5 / basis.normaliser.scale[index])
        size = weights.norm(dim=0).clamp_min(1e-12)
        out, touched = torch.zeros_like(weights), torch.zeros(weights.shape[1], dtype=torch.bool, device=weights.device)
        for latent in latents:
            row = basis.directions(site)[latent].to(weights)
            along = (row / row.norm()) @ weights
            near = (along.abs() >= self.config.threshold * along.abs().max()).nonzero().flatten()
            sign, length = along[near].sign(), size[near] / usual
            x = (sign / length * weights[:, near]).T + basis.normaliser.mean[index].to(weights)
            codes = basis.encode(site, x)
            without = codes.clone()
            without[:, latent] = 0
            taken = (basis.decode(site, without) - basis.decode(site, codes)).to(weights)
            out[:, near] += (sign * length) * taken.T
            touched[near] |= bool(taken.any())
        return out, int(touched.sum())

    def _layers(self, model: ModelAdapter, basis: Basis) -> dict[int, Site]:
        """Layer -> the site of the basis in whose units its MLP's output is read."""
        found = {}
        for layer in range(model.info.n_layers) if self.config.layers is None else self.config.layers:
            if site := next((s for s in (Site("mlp_out", layer), Site("resid", layer)) if s in basis.sites), None):
                found[layer] = site
        if not found:
            raise SiteError("the basis covers the output of none of these MLPs",
                            do="use a basis with sites mlp_out.L or resid.L, or other layers")
        return found

    def _latents(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> dict[int, float]:
        """Latent -> mean part along the contrast that it has at the answer, at the deepest site of the stream in the basis."""
        named = self.config.latents
        if wrong := [i for i in named if i >= basis.d_dict]:
            raise ShapeError(f"the basis has {basis.d_dict} latents, {wrong[0]} is asked for",
                             do=f"choose latents from 0 to {basis.d_dict - 1}")
        stream = [s for s in basis.sites if s.name == "resid"]
        if not stream and not named:
            raise SiteError("latents are chosen in the stream, and the basis does not cover it", do="name the latents")
        if named:
            return dict.fromkeys(named, 0.0)
        site = max(stream, key=model.info.depth)
        total, count = torch.zeros(basis.d_dict, device=model.device), 0
        for item in request.change:
            x = model.forward(item.clean, capture=[site], logits="none")[site]
            codes = basis.encode(site, x[torch.arange(len(x), device=x.device), item.clean.last()])
            total += (codes * (targets_of(model, item).to(codes) @ basis.directions(site).to(codes).T)).sum(0)
            count += len(x)
        best = (total / count).topk(min(self.config.top, len(total)))
        found = {int(i): float(v) for i, v in zip(best.indices, best.values, strict=True) if v > 0}
        if not found:
            raise DataError("no latent of the basis writes towards the answers", do="name the latents, or use another basis")
        return found
