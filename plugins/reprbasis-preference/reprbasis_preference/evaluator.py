"""Evaluator `preference`: the map of all heads and MLPs over the features of a basis.

Shapes: L layers, C components of a layer, H heads, N features, k targets kept, D residual width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reprbasis.errors import SiteError
from reprbasis.interfaces.evaluator import EvaluationInputs, Evaluator, Figure, Findings, Measurement
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.kits.components import read, stream_before
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import FeatureMapConfig
from .heads import ov_directions
from .measures import largest_by_chance, q_values, unit, z_values
from .mlps import mlp, mlp_bg
from .table import Factored, factored_output, factored_ov, preferred

TOKENS = 256


@dataclass(frozen=True)
class Typical:
    """Of one layer: mean stream that the MLP reads [D], a typical length of each feature's share in it [N], that of the stream
    before the block, and the share of tokens where each feature is active [N].
    """

    mean: Tensor
    scale: Tensor
    stream: float
    rate: Tensor


@torch.no_grad()
def typical(model: ModelAdapter, basis: Basis, texts: Sequence[TokenSequence], layers: Sequence[int], chosen: Tensor
            ) -> dict[int, Typical]:
    """From up to 256 tokens of the texts; a feature's length is its mean where it is active, or the median feature's."""
    tokens = TokenBatch.pad([s.cut(128) for s in texts[:8]], pad_id=model.pad_id).to(model.device)
    depth = {i: model.info.depth(stream_before(i)) for i in layers}
    nearest = {i: min(basis.sites, key=lambda s, at=at: abs(model.info.depth(s) - at)) for i, at in depth.items()}
    sites = {s for i in layers for s in (stream_before(i), Site("attn_out", i), nearest[i])}
    result = model.forward(tokens, capture=sites, logits="none")
    rows = (tokens.mask & (tokens.positions > 0)).flatten().nonzero().flatten()[:TOKENS]
    flat = {s: result[s].flatten(0, 1)[rows] for s in sites}
    out = {}
    for layer in layers:
        site, before = nearest[layer], flat[stream_before(layer)]
        length = basis.encode(site, flat[site])[:, chosen].abs() * basis.directions(site)[chosen].norm(dim=-1)
        active = (length > 0).sum(0)
        scale = length.sum(0) / active.clamp_min(1)
        usual = scale[active > 0].median() if bool((active > 0).any()) else torch.tensor(1.0)
        out[layer] = Typical((before + flat[Site("attn_out", layer)]).mean(0), torch.where(active > 0, scale, usual),
                             float(before.norm(dim=-1).mean()), active / len(rows))
    return out


class FeatureMap(Evaluator[FeatureMapConfig]):
    """Feature-pure preference: heads by `ov`, MLPs by `mlp_bg` or `mlp`. What a component would do with a feature alone.

    It says what a component is able to write, not what it does: on indirect objects in SmolLM2 it does not find the heads that
    decide, where the in-context ranking (step `prefer`) does.
    """

    @torch.no_grad()
    def evaluate(self, inputs: EvaluationInputs) -> Findings:
        """Measurements of each layer's preference for its own features; values hold the whole map.

        Values, for `heads/` [L, H, N] and `mlps/` [L, 1, N]: `self_p`, `self_z`, `self_q` (a feature as target of itself), `rel`
        (|y| / |x|) and, with k more entries, `target` (row of `features`), `p`, `gain`, `z`, `q`; `heads/read`: share of the
        source that the head reads; `features`: latents; `layers`.

        Raises:
            SiteError: a layer that the model does not have.
        """
        model, basis = inputs.model, inputs.basis
        layers = range(model.info.n_layers) if self.config.layers is None else self.config.layers
        if wrong := [i for i in layers if not 0 <= i < model.info.n_layers]:
            raise SiteError(f"the model has no layer {wrong[0]}", do=f"use layers from 0 to {model.info.n_layers - 1}")
        draw = torch.Generator().manual_seed(inputs.seed)
        chosen = torch.randperm(basis.d_dict, generator=draw)[:self.config.features].sort().values
        features = unit(basis.directions(basis.sites[0])[chosen]).to(model.device)  # sites differ in scale alone
        targets = unit(features - features.mean(0)) if self.config.contrast else features
        null = torch.randint(len(targets), (self.config.null,), generator=draw)
        parts: dict[str, dict[str, list[Tensor]]] = {"heads": {}, "mlps": {}}
        lengths = typical(inputs.model, basis, inputs.held_out(), layers, chosen) if self.config.mlp == "mlp_bg" else {}
        for layer in layers:
            weights = model.attention(layer)
            self._add(parts["heads"], factored_ov(weights, features), targets, null, model.info.d_model**0.5)
            normed = read(weights.norm, features.to(weights.W_V))
            parts["heads"].setdefault("read", []).append(ov_directions(weights).read_share(normed).mT)
            if self.config.mlp != "none":
                bare, usual = self.config.mlp == "mlp", lengths.get(layer)
                y = mlp(model.mlp(layer), features) if bare or usual is None else mlp_bg(
                    model.mlp(layer), features, usual.mean, usual.scale)
                size = model.info.d_model**0.5 if usual is None else usual.scale
                self._add(parts["mlps"], factored_output(y), targets, null, size)
        stacked = {f"{kind}/{name}": torch.stack(rows).cpu() for kind, held in parts.items() for name, rows in held.items()}
        return self._findings(stacked, list(layers), chosen, model.info.d_model)

    def _add(self, held: dict[str, list[Tensor]], outputs: Factored, targets: Tensor, null: Tensor,
             read_size: Tensor | float) -> None:
        found = preferred(outputs, targets, null, top=self.config.top, chunk=self.config.chunk)
        chance = outputs.gain(targets[null]) / outputs.size[..., None].clamp_min(torch.finfo(outputs.size.dtype).tiny)
        own, shuffled = outputs.paired(targets), outputs.paired(targets.roll(1, 0))
        for name, value in {"target": found.target, "p": found.p, "gain": found.gain, "z": found.z, "self_p": own,
                            "self_z": z_values(own, chance.movedim(-1, 0)), "shuffled_p": shuffled,
                            "shuffled_z": z_values(shuffled, chance.movedim(-1, 0)), "rel": outputs.size / read_size}.items():
            held.setdefault(name, []).append(value)

    def _findings(self, values: dict[str, Tensor], layers: list[int], chosen: Tensor, d: int) -> Findings:
        rows: list[Measurement] = []
        n = len(chosen)
        for kind, site in (("heads", "attn_out"), ("mlps", "mlp_out")):
            if f"{kind}/p" not in values:
                continue
            values[f"{kind}/q"] = q_values(values[f"{kind}/z"], tests=values[f"{kind}/self_p"].numel() * n)
            for name, condition in (("self", "features"), ("shuffled", "shuffled")):
                p, z = values[f"{kind}/{name}_p"], values[f"{kind}/{name}_z"]
                q = values[f"{kind}/{name}_q"] = q_values(z)
                for i, layer in enumerate(layers):
                    for what, value in (("self_preference", p[i]), ("copied", ((q[i] < 0.05) & (z[i] > 0)).float()),
                                        ("suppressed", ((q[i] < 0.05) & (z[i] < 0)).float())):
                        rows.append(Measurement(what, float(value.mean()), value.numel(), condition=condition,
                                                site=f"{site}.{layer}", unit="" if what == "self_preference" else "share"))
            for name in ("shuffled_p", "shuffled_z", "shuffled_q"):
                del values[f"{kind}/{name}"]
        series = {f"{m.site.partition('.')[0]} {m.condition}": [] for m in rows if m.site}
        for m in rows:
            if m.name == "copied" and m.site:
                series[f"{m.site.partition('.')[0]} {m.condition}"].append(m.value)
        figure = Figure("line", "Features copied", "Share of (component, feature) pairs whose output along the feature stands "
                        "out of shuffled targets at a false discovery rate of 5 %, and the same for targets of other features.",
                        series, layers, x_label="layer", y_label="share")
        pairs = values["heads/self_p"].numel()
        note = (f"{n} latents; the targets kept are those of largest |gain|. By chance the largest of {pairs} P of heads is "
                f"about {largest_by_chance(pairs, d):.2f} if outputs are isotropic.")
        kept = {name: value.contiguous() for name, value in values.items()}
        return Findings(rows, [figure], notes=[note], values={**kept, "features": chosen, "layers": torch.tensor(layers)})
