"""How much of every site a basis explains, and what the model loses when it sees only that.

Shapes: B batch, T tokens, P predicted positions, N real tokens, D width, K latents.

A site is replaced by its reconstruction at all its tokens, the rest of the model runs on. Measured at tokens whose text so far
begins no training sequence (otherwise a shared system prompt would count as held-out). Reported per site and condition:

    l0            mean number of non-zero codes
    fvu           sum |x - x'|^2 / sum |x - mean|^2, mean over the training tokens; ev = 1 - fvu. Position 0 (the attention sink,
                  whose norm is up to a hundred times the median) is left out; `fvu_first` is the same for position 0 alone
    alive         latents that fire on at least one of these tokens
    ce_increase   cross-entropy of the next token minus that of the unchanged model, nats
    kl            KL(unchanged || replaced), nats
    ce_recovered  1 - ce_increase / ce_increase under mean ablation of that site. Where the mean does as well as the truth (late
                  attention outputs) this is a ratio of two noises: look at kl_recovered
    kl_recovered  1 - kl / kl under mean ablation of that site

Conditions: `global` (the basis); `mean` (every token replaced by the site's mean); `untrained` (the dictionary before training);
`random` (random directions, the same L0, the best scalar gain: reconstruction only); `per-site` (a dictionary of its own).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reprbasis.errors import DataError, ReprBasisError
from reprbasis.interfaces.evaluator import EvaluationInputs, Evaluator, Figure, Findings, Measurement
from reprbasis.interfaces.model import Edit, ForwardResult, ModelAdapter, Replace, Start
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.kits.intervals import Estimate, mean, ratio
from reprbasis.kits.tokenwise import Reference, predicts
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.fit import fit
from reprbasis.sites import Site

from .config import ReconstructionConfig
from .controls import untrained

UNSEEN = "unseen"
"""Flag of tokens that are measured, see `Activations.unseen`."""


class Reconstruction(Evaluator[ReconstructionConfig]):
    """Reconstruction per site with its controls."""

    def evaluate(self, inputs: EvaluationInputs) -> Findings:
        """Measurements per site, and for all sites of `together` at once."""
        run = _Run(self.config, inputs)
        sites = [s for s in inputs.model.info.select(self.config.sites) if s in inputs.basis.sites]
        bases = {"global": inputs.basis}
        if self.config.untrained:
            bases["untrained"] = untrained(inputs)
        own = run.per_site(self.config.per_site) if self.config.per_site else {}
        with inputs.progress.task("evaluate sites", total=len(sites), unit="sites") as task:
            for done, site in enumerate(sites):
                run.mean_ablation(site)
                for condition, basis in bases.items():
                    run.measure(site, basis, condition)
                run.random(site)
                if site in own:
                    run.measure(site, own[site], "per-site")
                task.update(done + 1)
        groups = [self.config.together] if isinstance(self.config.together, str) else self.config.together
        for group in groups:
            run.together([s for s in inputs.model.info.select(group) if s in inputs.basis.sites], bases, f"all {group}")
        notes = [f"Held-out text: {run.tokens} tokens of {run.groups} sequences; measured at the {run.positions} positions whose "
                 "text so far begins no training sequence (the shared system prompt is left out). Intervals: 95 % bootstrap "
                 f"over sequences. Cross-entropy of the unchanged model: {run.original:.3f} nats."]
        notes += _density(inputs.basis, run.rows)
        return Findings(run.rows, _figures(run.rows, sites), [], notes)


class _Run:
    def __init__(self, config: ReconstructionConfig, inputs: EvaluationInputs) -> None:
        self.config, self.inputs = config, inputs
        self.model: ModelAdapter[Any] = inputs.model
        sequences: list[TokenSequence] = []
        for sequence in inputs.activations.sequences("held-out"):
            sequence = sequence.cut(config.sequence_tokens)
            if sequences and sum(map(len, sequences)) + len(sequence) > config.tokens:
                break
            sequences.append(sequence)
        marked = [replace(s, flags={**s.flags, UNSEEN: new})
                  for s, new in zip(sequences, inputs.activations.unseen(sequences), strict=True)]
        self.batches = [b.to(self.model.device) for b in TokenBatch.pack(
            marked, length=max(256, *map(len, marked)), rows=4, pad_id=self.model.pad_id)]
        self.tokens, self.groups = sum(map(len, marked)), len(marked)
        self.clean: list[ForwardResult] = [self.model.forward(b, capture=self.model.info.sites) for b in self.batches]
        self.references = [Reference(_logits(c), c.batch, c.batch.flag(UNSEEN)) for c in self.clean]
        self.group = torch.cat([b.sequences[predicts(b) & b.flag(UNSEEN)] for b in self.batches])
        self.owner = torch.cat([b.sequences[b.mask] for b in self.batches])
        self.first = torch.cat([b.positions[b.mask] == 0 for b in self.batches])
        self.body = torch.cat([b.flag(UNSEEN)[b.mask] for b in self.batches]) & ~self.first
        if not len(self.group):
            raise DataError("every held-out token that is used repeats the beginning of a training sequence",
                            do="raise sequence_tokens, or harvest more varied text")
        self.original = float(torch.cat([r.loss for r in self.references]).mean())
        self.positions = len(self.group)
        self.rows: list[Measurement] = []
        self.ablated: dict[str, dict[str, Tensor]] = {}
        self.l0: dict[Site, int] = {}

    def add(self, name: str, estimate: Estimate, condition: str, site: str, unit: str = "") -> None:
        self.rows.append(Measurement(name, estimate.value, estimate.n, estimate.low, estimate.high, condition, site, unit))

    def values(self, site: Site) -> list[Tensor]:
        return [c.sites[site] for c in self.clean]

    def mean(self, site: Site) -> Tensor:
        return self.inputs.activations.stats.mean[site].float().to(self.model.device)

    def measure(self, site: Site, basis: Basis, condition: str) -> None:
        """Codes, reconstruction and behaviour of one site under one dictionary."""
        active, replaced = [], []
        alive = torch.zeros(basis.d_dict, dtype=torch.bool, device=self.model.device)
        for batch, x in zip(self.batches, self.values(site), strict=True):
            z = basis.encode(site, x)
            on = z[batch.mask] != 0
            active.append(on.sum(-1))
            alive |= on.any(0)
            replaced.append(basis.decode(site, z).to(x.dtype))
        counts = torch.cat(active).float()
        l0 = mean(counts[self.body], self.owner[self.body], resamples=self.config.resamples)
        self.add("l0", l0, condition, str(site), "latents")
        self.rows.append(Measurement("alive", float(alive.sum()), self.tokens, None, None, condition, str(site), "latents"))
        if condition == "global":
            self.l0[site] = max(round(l0.value), 1)
        self.error(site, replaced, condition)
        self.behaviour(site, replaced, condition)

    def mean_ablation(self, site: Site) -> None:
        """The control that knows only the mean: FVU is 1 by definition, so only behaviour is measured."""
        self.behaviour(site, [self.mean(site).to(x.dtype).expand_as(x) for x in self.values(site)], "mean")

    def random(self, site: Site) -> None:
        """Random unit directions with the L0 of the basis and the best single gain: what sparsity and width alone give."""
        basis = self.inputs.basis
        generator = torch.Generator().manual_seed(self.inputs.seed)
        rows = torch.nn.functional.normalize(torch.randn(basis.d_dict, basis.d_in, generator=generator), dim=1)
        index, replaced = basis.index(site), []
        for x, batch in zip(self.values(site), self.batches, strict=True):
            y = basis.normaliser.apply(x.float(), index)
            scores = y @ rows.T
            kept = scores.topk(self.l0[site], dim=-1)
            guess = torch.zeros_like(scores).scatter_(-1, kept.indices, kept.values) @ rows
            real = guess[batch.mask]
            gain = (real * y[batch.mask]).sum() / real.square().sum().clamp_min(1e-12)
            replaced.append(basis.normaliser.invert(guess * gain, index))
        self.error(site, replaced, "random")

    def error(self, site: Site, replaced: Sequence[Tensor], condition: str) -> None:
        x = torch.cat([v[b.mask] for v, b in zip(self.values(site), self.batches, strict=True)]).float()
        y = torch.cat([v[b.mask] for v, b in zip(replaced, self.batches, strict=True)]).float()
        lost, spread = (x - y).square().sum(-1), (x - self.mean(site)).square().sum(-1)
        body = self.body
        fvu = ratio(lost[body], spread[body], self.owner[body], resamples=self.config.resamples)
        self.add("fvu", fvu, condition, str(site))
        self.add("ev", _rest(fvu), condition, str(site))
        sinks = ratio(lost[self.first], spread[self.first].clamp_min(1e-12), self.owner[self.first],
                      resamples=self.config.resamples)
        self.add("fvu_first", sinks, condition, str(site))

    def behaviour(self, site: Site, replaced: Sequence[Tensor], condition: str) -> None:
        """Continue the model from the replaced site, from the nearest stream value before it."""
        results = []
        for clean, value in zip(self.clean, replaced, strict=True):
            if _in_stream(site):
                start, edits = Start(site, value), []
            else:
                before = [s for s in self.model.info.sites[:self.model.info.depth(site)] if _in_stream(s)][-1]
                start, edits = Start(before, clean.sites[before]), [Replace(site, value)]
            results.append(self.model.forward(clean.batch, start=start, edits=edits))
        self.compare(results, condition, str(site))

    def together(self, sites: Sequence[Site], bases: dict[str, Basis], name: str) -> None:
        """Replace many sites in one forward; errors made early are seen later."""
        plans: dict[str, list[list[Edit]]] = {"mean": [
            [Replace(s, self.mean(s).expand_as(c.sites[s])) for s in sites] for c in self.clean]}
        plans |= {k: [list(b.splice(sites, error="none"))] * len(self.clean) for k, b in bases.items()}
        for condition, edits in plans.items():
            self.compare([self.model.forward(c.batch, edits=e) for c, e in zip(self.clean, edits, strict=True)],
                         condition, name)

    def compare(self, results: Sequence[ForwardResult], condition: str, site: str) -> None:
        """Next-token loss and divergence against the unchanged model."""
        pairs = [reference.compare(_logits(r)) for reference, r in zip(self.references, results, strict=True)]
        increase = torch.cat([loss - reference.loss for reference, (loss, _) in zip(self.references, pairs, strict=True)])
        kl = torch.cat([kl for _, kl in pairs])
        resamples = self.config.resamples
        self.add("ce_increase", mean(increase, self.group, resamples=resamples), condition, site, "nats")
        self.add("kl", mean(kl, self.group, resamples=resamples), condition, site, "nats")
        if condition == "mean":
            self.ablated[site] = {"ce_recovered": increase, "kl_recovered": kl}
        for name, value in (("ce_recovered", increase), ("kl_recovered", kl)):
            if condition != "mean" and site in self.ablated:
                self.add(name, _rest(ratio(value, self.ablated[site][name], self.group, resamples=resamples)), condition, site)

    def per_site(self, selectors: str | Sequence[str]) -> dict[Site, Basis]:
        """A dictionary of its own for some sites, with an equal share of the parameters."""
        basis, out = self.inputs.basis, {}
        config, training = basis.learner.config, basis.details["training"]
        same = {name: training[name] for name in ("normaliser", "norm_cap", "repeats", "seed")}
        batch = min(training["batch"], self.inputs.activations.tokens // 4)
        if "width" not in type(config).model_fields:
            raise ReprBasisError(f"{basis.learner.full_name} has no option 'width', so no smaller dictionary can be made",
                                 do="leave per_site out")
        small = type(basis.learner)(config.model_copy(update={"width": max(basis.d_dict // len(basis.sites), 1)}))
        small.full_name = basis.learner.full_name
        for site in self.model.info.select(selectors if isinstance(selectors, str) else list(selectors)):
            out[site] = fit(small, self.inputs.activations, rows=self.config.per_site_rows, sites=str(site), batch=batch,
                            progress=self.inputs.progress, capabilities=basis.capabilities, **same)
        return out


def _rest(lost: Estimate) -> Estimate:
    low, high = (None if v is None else 1 - v for v in (lost.high, lost.low))
    return Estimate(1 - lost.value, low, high, lost.n, lost.groups)


def _logits(result: ForwardResult) -> Tensor:
    assert result.logits is not None
    return result.logits


def _in_stream(site: Site) -> bool:
    return site.name in ("embed", "resid")


def _density(basis: Basis, rows: Sequence[Measurement]) -> list[str]:
    """The density alarm: a code that is not sparse reconstructs well and explains nothing."""
    dense = [m for m in rows if m.name == "l0" and m.condition == "global" and m.value > 0.05 * basis.d_dict]
    return [f"DENSITY ALARM: L0 is above 5 % of the {basis.d_dict} latents at {len(dense)} sites "
            f"(worst: {max(dense, key=lambda m: m.value).site}). Reconstruction figures there mean little."] if dense else []


CURVES = {
    "ev": ("Explained variance by depth",
           "Share of the variance of each site that the reconstruction explains (1 is perfect, 0 is what the mean does). "
           "Position 0 is left out. Values below -1 are drawn at -1."),
    "kl_recovered": ("Behaviour kept by depth",
                     "One site is replaced by its reconstruction and the rest of the model runs on. 1: predictions stay as they "
                     "were; 0: as bad as replacing the site by its mean. Values below -1 are drawn at -1."),
    "l0": ("Active latents per token by depth", "Mean number of latents that describe one token at this site."),
}
"""Figure -> title and caption; one figure for each family of sites."""


def _figures(rows: Sequence[Measurement], sites: Sequence[Site]) -> list[Figure]:
    out = []
    for name, (title, caption) in CURVES.items():
        conditions = ("global",) if name == "l0" else ("global", "untrained", "random")
        found = {c: {m.site: m.value for m in rows if m.name == name and m.condition == c} for c in conditions}
        for family in dict.fromkeys(s.name for s in sites if s.layer is not None):
            members = [s for s in sites if s.name == family]
            series = {c: [max(v[str(s)], -1.0) for s in members] for c, v in found.items() if all(str(s) in v for s in members)}
            if series:
                layers = [s.layer for s in members]
                out.append(Figure("line", f"{title}: {family}", caption, series, layers, (), "layer", name))
    return out
