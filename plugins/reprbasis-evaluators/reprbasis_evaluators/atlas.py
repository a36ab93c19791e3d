"""Where every latent lives over depth, and what it responds to.

Shapes: S sites, K latents, N tokens of a block, D width, V vocabulary.

Sharing over depth follows Lawson et al. 2025 (multi-layer SAEs): with A[l, k] the total activation of latent k at layer l and
p_k(l) = A[l, k] / sum_l A[l, k], the layer variance is sum_l (l - mu)^2 p_k(l): 0 for a latent of one layer, (L^2 - 1) / 12
for one spread evenly over L. Effective layers: exp of the entropy of p_k. Reuse rate: share of alive latents whose firing rate
exceeds 1e-4 at two sites or more.

Where the model tells kinds of tokens apart (image and text, thinking and answer), a latent's share of one kind is its mean
activation there over the sum of both means, and `mostly_image` is the share of alive latents for which that exceeds 0.95.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reprbasis.interfaces.evaluator import (
    Context,
    EvaluationInputs,
    Evaluator,
    FeatureCard,
    Figure,
    Findings,
    Measurement,
)
from reprbasis.interfaces.reporter import Progress, Silent
from reprbasis.kits.cards import promoted
from reprbasis.kits.contexts import distinct
from reprbasis.kits.controls import untrained
from reprbasis.runtime.activations import Activations
from reprbasis.runtime.basis import Basis

from .config import AtlasConfig
from .heldout import KINDS, kinds_of

CANDIDATES = 48
"""Top tokens kept per latent, from which distinct contexts are chosen."""
MOSTLY = 0.95


@dataclass(frozen=True)
class Census:
    """What the latents did on a set of tokens.

    Args:
        tokens: N read at each site.
        total: [S, K] sum of activations; count: [S, K] how often active.
        top: [C, K] largest activations over tokens (the largest over sites for each token); token: [C, K] row of the token
            table; site: [C, K] where.
        histogram: [K, len(EDGES) + 1] counts of positive activations.
        kinds: for each kind of token that the model tells apart, [K] mean activation there, summed over sites.
    """

    tokens: int
    total: Tensor
    count: Tensor
    top: Tensor
    token: Tensor
    site: Tensor
    histogram: Tensor
    kinds: Mapping[str, Tensor] = field(default_factory=dict)

    def shares(self) -> dict[str, Tensor]:
        """[K] for each kind: the share of a latent's activation that falls on it rather than on its counterpart."""
        return {name: self.kinds[name] / (self.kinds[name] + self.kinds[other]).clamp_min(1e-12)
                for pair in KINDS for name, other in (pair, pair[::-1]) if name in self.kinds}


EDGES = torch.tensor([2.0**e for e in torch.arange(-4, 9, 0.5).tolist()])


def census(basis: Basis, activations: Activations, most: int, *, block: int = 512, progress: Progress | None = None) -> Census:
    """Encode up to `most` training tokens at every site of the basis, in one pass.

    Left out: repeated beginnings, and position 0, where the attention sink makes almost every latent fire at many times its
    usual strength.

    Cost: most * S * 2 * D * K FLOPs; memory: block * K * 12 bytes and S * K * 8.
    """
    s, k = len(basis.sites), basis.d_dict
    total, count = torch.zeros(s, k, dtype=torch.float64), torch.zeros(s, k, dtype=torch.long)
    top = torch.zeros(CANDIDATES, k)
    token, where = (torch.zeros(CANDIDATES, k, dtype=torch.long) for _ in range(2))
    histogram = torch.zeros(k * (len(EDGES) + 1), dtype=torch.long)
    nowhere = torch.zeros(activations.tokens, dtype=torch.bool)
    kinds = kinds_of(lambda name: activations.table.flags.get(name, nowhere))
    read, by_kind = dict.fromkeys(kinds, 0), {name: torch.zeros(k, dtype=torch.float64) for name in kinds}
    base = seen = 0
    with (progress or Silent()).task("atlas", total=min(most, activations.tokens), unit="tokens") as task:
        for shard, size in enumerate(activations.shards):
            rows = slice(base, base + size)
            new = (~activations.table.repeats[rows] & (activations.table.positions[rows] > 0)).nonzero().flatten()[:most - seen]
            for part in torch.split(new, block) if len(new) else ():
                first, last = int(part[0]), int(part[-1])
                best, best_site = torch.zeros(len(part), k), torch.zeros(len(part), k, dtype=torch.long)
                for i, site in enumerate(basis.sites):
                    z = basis.encode(site, activations.read(site, shard, slice(first, last + 1))[part - first]).cpu()
                    total[i] += z.sum(0)
                    for name, belongs in kinds.items():
                        by_kind[name] += z[belongs[part + base]].sum(0)
                    rows, latents = z.nonzero(as_tuple=True)
                    count[i] += torch.bincount(latents, minlength=k)
                    bins = torch.bucketize(z[rows, latents], EDGES)
                    histogram += torch.bincount(latents * (len(EDGES) + 1) + bins, minlength=len(histogram))
                    larger = z > best
                    best_site[larger] = i
                    torch.maximum(best, z, out=best)
                rank = torch.topk(torch.cat([top, best]), CANDIDATES, dim=0)
                ids = (part + base)[:, None].expand(-1, k)
                token = torch.cat([token, ids]).gather(0, rank.indices)
                where = torch.cat([where, best_site]).gather(0, rank.indices)
                top = rank.values
                seen += len(part)
                for name, belongs in kinds.items():
                    read[name] += int(belongs[part + base].sum())
                task.update(seen)
            base += size
            if seen == most:
                break
    means = {name: value / max(read[name], 1) for name, value in by_kind.items()}
    return Census(seen, total, count, top, token, where, histogram.view(k, -1), means)


class Atlas(Evaluator[AtlasConfig]):
    """Feature cards and the sharing of latents over depth."""

    def evaluate(self, inputs: EvaluationInputs) -> Findings:
        """Cards for a random sample of the alive latents; sharing measured over all of them."""
        found = census(inputs.basis, inputs.activations, self.config.tokens, progress=inputs.progress)
        control = census(untrained(inputs), inputs.activations, self.config.control_tokens)
        measurements: list[Measurement] = []
        figures: list[Figure] = []
        for condition, one in (("global", found), ("untrained", control)):
            rows, drawn = self.sharing(inputs.basis, one, condition)
            measurements += rows
            figures += drawn if condition == "global" else []
        alive = torch.nonzero(found.count.sum(0) > 0).flatten()
        order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(inputs.seed))[:self.config.features]
        cards = self.cards(inputs, found, sorted(alive[order].tolist()))
        notes = [f"Features were read on {found.tokens} training tokens at {len(inputs.basis.sites)} sites; {len(cards)} of the "
                 f"{len(alive)} alive latents are shown, drawn at random."]
        values = {"latent_total": found.total.float(), "latent_count": found.count}
        return Findings(measurements, figures, cards, notes, values)

    def sharing(self, basis: Basis, found: Census, condition: str) -> tuple[list[Measurement], list[Figure]]:
        """Layer variance, effective layers, reuse."""
        k, rate = basis.d_dict, found.count.double() / found.tokens
        alive = found.count.sum(0) > 0
        out = [Measurement("alive_share", float(alive.double().mean()), k, condition=condition, unit="share")]
        reused = ((rate > 1e-4).sum(0) >= 2)[alive].double()
        out.append(_mean("reuse_rate", reused, condition, "share"))
        for name, share in found.shares().items():
            out.append(_mean(f"mostly_{name}", (share[alive] > MOSTLY).double(), condition, "share"))
        stream = [i for i, s in enumerate(basis.sites) if s.name == self.config.stream]
        layers = torch.tensor([float(basis.sites[i].layer or 0) for i in stream], dtype=torch.float64)
        figures: list[Figure] = []
        if len(stream) >= 2:
            total = found.total[stream]
            p = (total / total.sum(0).clamp_min(1e-12))[:, total.sum(0) > 0]
            mu = (layers[:, None] * p).sum(0)
            variance = ((layers[:, None] - mu).square() * p).sum(0)
            effective = torch.exp(-(p * p.clamp_min(1e-12).log()).sum(0))
            out += [_mean("layer_variance", variance, condition), _mean("effective_layers", effective, condition, "layers")]
            names = [str(basis.sites[i]) for i in stream]
            order = torch.argsort(mu)
            shown = order[torch.linspace(0, len(order) - 1, min(200, len(order))).long()]
            kept = torch.nonzero(total.sum(0) > 0).flatten()
            matrix = {"share": [[round(v, 4) for v in p[:, i].tolist()] for i in shown]}
            depth = len(stream)
            figures += [
                Figure("heatmap", f"Latents over depth ({self.config.stream})",
                       f"Each row is a latent ({len(shown)} of {len(order)}, sorted by mean layer), each column a layer; the "
                       "colour is the share of the latent's activation that falls on that layer. A diagonal of single cells "
                       "would mean one dictionary per layer; wide bands mean that layers share latents.",
                       matrix, names, [int(kept[i]) for i in shown], "layer", "latent"),
                _histogram("Effective layers per latent",
                           f"exp(entropy) of each latent's activation over the {depth} layers: 1 is a latent of one layer, "
                           f"{depth} one spread evenly over all.", effective, "effective layers"),
                _histogram("Layer variance per latent",
                           "Variance of the layer at which a latent is active: 0 for a latent of one layer, "
                           f"{(depth**2 - 1) / 12:.1f} for one spread evenly over all {depth}.", variance, "layer variance"),
            ]
        sites_used = (rate > 1e-4).sum(0)[alive].double()
        for name, _ in KINDS:
            if name in found.kinds:
                caption = (f"Share of a latent's activation that falls on {name} tokens (1) rather than on the others (0), as if "
                           "both were equally frequent.")
                figures.append(_histogram(f"Latents of {name} tokens", caption, found.shares()[name][alive], "share"))
        caption = "Number of sites at which an alive latent fires on more than one in 10,000 tokens."
        figures.append(_histogram("Sites where a latent is used", caption, sites_used, "sites"))
        return out, figures

    def cards(self, inputs: EvaluationInputs, found: Census, latents: Sequence[int]) -> list[FeatureCard]:
        """What a person sees of each latent."""
        basis, out = inputs.basis, []
        contexts = self.contexts(inputs, found, latents)
        said = promoted(inputs.model, basis, latents, self.config.promoted)
        effective, shares = _effective(found.total), found.shares()
        for row, k in enumerate(latents):
            share = found.total[:, k] / found.total[:, k].sum().clamp_min(1e-12)
            bins = found.histogram[k]
            used = torch.nonzero(bins).flatten()
            low, high = int(used.min()), int(used.max())
            edges = [0.0, *EDGES.tolist(), float("inf")][low:high + 2]
            edges[-1] = min(edges[-1], max(float(found.top[0, k]), edges[-2]))
            out.append(FeatureCard(
                latent=int(k), peak=float(found.top[0, k]),
                rate=float(found.count[:, k].sum()) / (found.tokens * len(basis.sites)),
                sites={str(s): round(float(share[i]), 5) for i, s in enumerate(basis.sites) if share[i] > 5e-4},
                contexts=contexts[k],
                promoted=said[row][0], suppressed=said[row][1],
                histogram=(edges, bins[low:high + 1].tolist()),
                notes={"effective_sites": float(effective[k]),
                       **{f"share_{name}": round(float(shares[name][k]), 3) for name, _ in KINDS if name in shares}}))
        return out

    def contexts(self, inputs: EvaluationInputs, found: Census, latents: Sequence[int]) -> dict[int, list[Context]]:
        """Top contexts of each latent, no two with the same tokens up to the peak and at most two of one sequence."""
        basis, out = inputs.basis, {}
        with inputs.progress.task("contexts", total=len(latents), unit="features") as task:
            for done, k in enumerate(latents):
                ranked = [(int(found.token[c, k]), basis.sites[int(found.site[c, k])]) for c in range(CANDIDATES)
                          if found.top[c, k] > 0]
                out[int(k)] = distinct(inputs.activations, basis, inputs.model.tokenizer, k, ranked, most=self.config.contexts,
                                       window=self.config.window)
                task.update(done + 1)
        return out


def _effective(total: Tensor) -> Tensor:
    p = total / total.sum(0).clamp_min(1e-12)
    return torch.exp(-(p * p.clamp_min(1e-12).log()).sum(0))


def _mean(name: str, values: Tensor, condition: str, unit: str = "") -> Measurement:
    """Mean over latents with the normal 95 % interval."""
    half = 1.96 * float(values.std()) / max(len(values), 1) ** 0.5 if len(values) > 1 else 0.0
    middle = float(values.mean()) if len(values) else 0.0
    return Measurement(name, middle, len(values), middle - half, middle + half, condition, unit=unit)


def _histogram(title: str, caption: str, values: Tensor, label: str) -> Figure:
    counts, edges = torch.histogram(values.float(), bins=30)
    return Figure("histogram", title, caption, {"latents": counts.int().tolist()}, [round(e, 3) for e in edges.tolist()], (),
                  label, "latents")


