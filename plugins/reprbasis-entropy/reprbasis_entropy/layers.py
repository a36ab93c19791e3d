"""Evaluator `entropy`: how many bits the codes carry at every site, and how that changes over depth.

Measured on held-out tokens whose text so far begins no training sequence, without position 0. Conditions: `global` (the basis),
`untrained` (its dictionary before training), `shuffled` (the basis on rows whose coordinates are permuted over the tokens, each
for itself: what is left when coordinates have lost their relations).

Shapes: N tokens, D width, K latents.
"""

from math import log2

import torch

from reprbasis.errors import DataError
from reprbasis.interfaces.evaluator import Evaluator, Figure, Findings, Measurement
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.controls import untrained

from .config import EntropyConfig
from .measure import set_entropy

CURVES = (
    ("entropy", "Bits by depth", "bits", "Sum over latents of the entropy of being active. Read it together with the unexplained "
     "variance: a code that explains little needs few bits."),
    ("fvu", "Unexplained variance by depth", "fvu", "Share of the variance that the reconstruction misses (values above 2 are "
     "drawn at 2)."),
)


class EntropyEvaluator(Evaluator[EntropyConfig]):
    """See the module."""

    def evaluate(self, inputs):
        """Measurements per site and condition; shares of dense and dead latents over all sites; curves over depth."""
        basis, model = inputs.basis, inputs.model
        sites = [s for s in model.info.select(self.config.sites) if s in basis.sites]
        rows, group = self._rows(inputs, sites)
        bases = {"global": basis} | ({"untrained": untrained(inputs)} if self.config.untrained else {})
        generator = torch.Generator().manual_seed(inputs.seed)
        found, rates = [], {c: [] for c in (*bases, "shuffled")}
        with inputs.progress.task("entropy", total=len(sites), unit="sites") as task:
            for done, site in enumerate(sites):
                x = rows.pop(site)
                centre = inputs.activations.stats.mean[site]
                mixed = x.gather(0, torch.rand(x.shape, generator=generator).argsort(0).to(x.device))
                for condition, view, values in [*((c, b, x) for c, b in bases.items()), ("shuffled", basis, mixed)]:
                    one = set_entropy(view, site, values, group=group, centre=centre, tree_bits=self.config.tree_bits)
                    found += one.measurements(condition, str(site))
                    rates[condition].append(one.rate)
                task.update(done + 1)
        return Findings([*found, *self._shares(rates)], self._figures(found, sites, rates), [], [
            f"Entropy of the codes of {len(group)} held-out tokens of {len(group.unique())} sequences: sum over latents of the "
            f"entropy of being active. At most {log2(len(group)):.1f} bits of joint entropy can show in so few. Intervals: "
            "jackknife (entropy) and bootstrap over sequences."])

    def _rows(self, inputs, sites):
        """Site -> [N, D], and the sequence of each row."""
        model, kept, total = inputs.model, [], 0
        for sequence in inputs.held_out():
            sequence = sequence.cut(self.config.sequence_tokens)
            if kept and total + len(sequence) > self.config.tokens:
                break
            kept.append(sequence)
            total += len(sequence)
        fresh = {s.sequence: new for s, new in zip(kept, inputs.activations.unseen(kept), strict=True)}
        parts, owners = {site: [] for site in sites}, []
        for batch in TokenBatch.pack(kept, length=max(256, *map(len, kept)), rows=4, pad_id=model.pad_id):
            result = model.forward(batch.to(model.device), capture=sites, stop_at=sites[-1], logits="none")
            where = batch.mask & (batch.positions > 0)
            for b, t in where.nonzero().tolist():
                where[b, t] = bool(fresh[int(batch.sequences[b, t])][batch.positions[b, t]])
            owners.append(batch.sequences[where])
            for site in sites:
                parts[site].append(result.sites[site].float().cpu()[where])
        group = torch.cat(owners)
        if not len(group):
            raise DataError("every held-out token that is used repeats the beginning of a training sequence",
                            do="raise sequence_tokens, or harvest more varied text")
        return {site: torch.cat(p) for site, p in parts.items()}, group

    def _shares(self, rates):
        """Latents dense at some site, and active nowhere, as shares of all."""
        out = []
        for condition, per_site in rates.items():
            rate = torch.stack(per_site)
            dense, dead = (rate > self.config.dense).any(0), (rate == 0).all(0)
            out += [Measurement(name, float(m.double().mean()), len(m), None, None, condition, None, "share")
                    for name, m in (("dense_share", dense), ("dead_share", dead))]
        return out

    def _figures(self, found, sites, rates):
        out, at = [], {(m.name, m.condition, m.site): m.value for m in found}
        for name, title, unit, caption in CURVES:
            for family in dict.fromkeys(s.name for s in sites if s.layer is not None):
                members = [s for s in sites if s.name == family]
                series = {c: [at[name, c, str(s)] for s in members] for c in rates}
                if name == "fvu":
                    series = {c: [min(v, 2.0) for v in values] for c, values in series.items()}
                out.append(Figure("line", f"{title}: {family}", caption, series, [s.layer for s in members], (), "layer", unit))
        rate = torch.stack(rates["global"]).mean(0)
        counts, edges = torch.histogram(rate[rate > 0].log10().float(), bins=30)
        out.append(Figure("histogram", "How often latents are active",
                          f"Share of tokens on which a latent is active, as a power of ten; {int((rate == 0).sum())} of "
                          f"{len(rate)} latents were never active.", {"latents": counts.int().tolist()},
                          [round(e, 3) for e in edges.tolist()], (), "log10 of the share", "latents"))
        return out
