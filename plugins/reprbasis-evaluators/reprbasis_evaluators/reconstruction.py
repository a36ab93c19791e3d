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
    lead_ev, lead_ce, lead_kl
                  how much better the basis is than the control in this row's condition, paired token by token: share of the
                  variance, nats, nats. Above 0: the basis is better. Paired, because tokens hard for one are hard for the other

Where the model tells kinds of tokens apart, l0, fvu, ev and the figures of behaviour are given for each kind too: `_image` and
`_text`, `_thinking` and `_answer`. The loss belongs to the kind of the token that is predicted, not of the one that predicts.

Conditions: `global` (the basis); `mean` (every token replaced by the site's mean); `untrained` (the dictionary before training);
`random` (random directions, the same L0, the best scalar gain: reconstruction only); `per-site` (a dictionary of its own).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from reprbasis.errors import ReprBasisError
from reprbasis.interfaces.evaluator import EvaluationInputs, Evaluator, Figure, Findings, Measurement
from reprbasis.interfaces.model import Edit, ForwardResult, ModelAdapter, Replace
from reprbasis.kits.controls import training_settings, untrained
from reprbasis.kits.intervals import Estimate, mean, ratio
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.fit import fit
from reprbasis.sites import Site

from .config import ReconstructionConfig
from .controls import density_alarm
from .heldout import HeldOut


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
                run.leads(str(site))
                task.update(done + 1)
        groups = [self.config.together] if isinstance(self.config.together, str) else self.config.together
        for group in groups:
            run.together([s for s in inputs.model.info.select(group) if s in inputs.basis.sites], bases, f"all {group}")
        text = run.text
        notes = [f"Held-out text: {text.tokens} tokens of {text.groups} sequences; measured at the {text.positions} positions "
                 "whose text so far begins no training sequence (the shared system prompt is left out). Intervals: 95 % "
                 f"bootstrap over sequences. Cross-entropy of the unchanged model: {text.original:.3f} nats."]
        notes += _clear(run.rows) + density_alarm(inputs.basis, run.rows)
        return Findings(run.rows, _figures(run.rows, sites), [], notes)


class _Run:
    def __init__(self, config: ReconstructionConfig, inputs: EvaluationInputs) -> None:
        self.config, self.inputs = config, inputs
        self.model: ModelAdapter[Any] = inputs.model
        self.text = HeldOut(inputs, tokens=config.tokens, sequence_tokens=config.sequence_tokens)
        self.rows: list[Measurement] = []
        self.losses: dict[tuple[str, str], dict[str, Tensor]] = {}  # (site, condition) -> name -> [positions]
        self.spread: dict[str, Tensor] = {}
        self.l0: dict[Site, int] = {}

    def add(self, name: str, estimate: Estimate, condition: str, site: str, unit: str = "") -> None:
        self.rows.append(Measurement(name, estimate.value, estimate.n, estimate.low, estimate.high, condition, site, unit))

    def parts(self) -> list[tuple[str, Tensor]]:
        """Suffix of a measurement's name, and [N] the tokens it is measured on: all, then each kind."""
        return [("", self.text.body), *((f"_{name}", where) for name, where in self.text.kinds.items())]

    def measure(self, site: Site, basis: Basis, condition: str) -> None:
        """Codes, reconstruction and behaviour of one site under one dictionary."""
        active, replaced = [], []
        alive = torch.zeros(basis.d_dict, dtype=torch.bool, device=self.model.device)
        for batch, x in zip(self.text.batches, self.text.values(site), strict=True):
            z = basis.encode(site, x)
            on = z[batch.mask] != 0
            active.append(on.sum(-1))
            alive |= on.any(0)
            replaced.append(basis.decode(site, z).to(x.dtype))
        counts = torch.cat(active).float()
        for suffix, where in self.parts():
            l0 = mean(counts[where], self.text.owner[where], resamples=self.config.resamples)
            self.add(f"l0{suffix}", l0, condition, str(site), "latents")
            if not suffix and condition == "global":
                self.l0[site] = max(round(l0.value), 1)
        self.rows.append(Measurement("alive", float(alive.sum()), self.text.tokens, None, None, condition, str(site), "latents"))
        self.error(site, replaced, condition)
        self.behaviour(site, replaced, condition)

    def mean_ablation(self, site: Site) -> None:
        """The control that knows only the mean: FVU is 1 by definition, so only behaviour is measured."""
        self.behaviour(site, [self.text.mean(site).to(x.dtype).expand_as(x) for x in self.text.values(site)], "mean")

    def random(self, site: Site) -> None:
        """Random unit directions with the L0 of the basis and the best single gain: what sparsity and width alone give."""
        basis = self.inputs.basis
        generator = torch.Generator().manual_seed(self.inputs.seed)
        rows = torch.nn.functional.normalize(torch.randn(basis.d_dict, basis.d_in, generator=generator), dim=1).to(basis.device)
        index, replaced = basis.index(site), []
        for x, batch in zip(self.text.values(site), self.text.batches, strict=True):
            y = basis.normaliser.apply(x.float(), index)
            scores = y @ rows.T
            kept = scores.topk(self.l0[site], dim=-1)
            guess = torch.zeros_like(scores).scatter_(-1, kept.indices, kept.values) @ rows
            real = guess[batch.mask]
            gain = (real * y[batch.mask]).sum() / real.square().sum().clamp_min(1e-12)
            replaced.append(basis.normaliser.invert(guess * gain, index))
        self.error(site, replaced, "random")

    def error(self, site: Site, replaced: Sequence[Tensor], condition: str) -> None:
        text, resamples = self.text, self.config.resamples
        x, y = text.real(text.values(site)).float(), text.real(replaced).float()
        lost, spread = (x - y).square().sum(-1), (x - text.mean(site)).square().sum(-1)
        self.losses.setdefault((str(site), condition), {})["ev"] = lost[text.body]
        self.spread[str(site)] = spread[text.body]
        for suffix, where in self.parts():
            fvu = ratio(lost[where], spread[where], text.owner[where], resamples=resamples)
            self.add(f"fvu{suffix}", fvu, condition, str(site))
            self.add(f"ev{suffix}", fvu.complement(), condition, str(site))
        sinks = ratio(lost[text.first], spread[text.first].clamp_min(1e-12), text.owner[text.first], resamples=resamples)
        self.add("fvu_first", sinks, condition, str(site))

    def behaviour(self, site: Site, replaced: Sequence[Tensor], condition: str) -> None:
        """Continue the model from the replaced site, from the nearest stream value before it."""
        self.compare(self.text.continued(site, replaced), condition, str(site))

    def together(self, sites: Sequence[Site], bases: dict[str, Basis], name: str) -> None:
        """Replace many sites in one forward; errors made early are seen later."""
        plans: dict[str, list[list[Edit]]] = {"mean": [
            [Replace(s, self.text.mean(s).expand_as(c.sites[s])) for s in sites] for c in self.text.clean]}
        plans |= {k: [list(b.splice(sites, error="none"))] * len(self.text.clean) for k, b in bases.items()}
        for condition, edits in plans.items():
            self.compare((self.model.forward(c.batch, edits=e) for c, e in zip(self.text.clean, edits, strict=True)),
                         condition, name)

    def compare(self, results: Iterable[ForwardResult], condition: str, site: str) -> None:
        """Next-token loss and divergence against the unchanged model."""
        pairs = self.text.compare(results)
        increase = torch.cat([loss - reference.loss for reference, (loss, _) in zip(self.text.references, pairs, strict=True)])
        kl = torch.cat([kl for _, kl in pairs])
        resamples = self.config.resamples
        self.losses.setdefault((site, condition), {}).update(ce=increase, kl=kl)
        ablated = self.losses.get((site, "mean")) if condition != "mean" else None
        for suffix, where in (("", slice(None)), *((f"_{name}", where) for name, where in self.text.predicting.items())):
            owner = self.text.group[where]
            self.add(f"ce_increase{suffix}", mean(increase[where], owner, resamples=resamples), condition, site, "nats")
            self.add(f"kl{suffix}", mean(kl[where], owner, resamples=resamples), condition, site, "nats")
            for name, value in (("ce", increase), ("kl", kl)) if ablated else ():
                kept = ratio(value[where], ablated[name][where], owner, resamples=resamples).complement()
                self.add(f"{name}_recovered{suffix}", kept, condition, site)

    def leads(self, site: str) -> None:
        """Paired differences between every control measured at this site and the basis."""
        ours = self.losses[site, "global"]
        for (where, condition), theirs in self.losses.items():
            for name in theirs if where == site and condition != "global" else ():
                gain = theirs[name] - ours[name]
                estimate = mean(gain, self.text.group, resamples=self.config.resamples) if name != "ev" else ratio(
                    gain, self.spread[site], self.text.owner[self.text.body], resamples=self.config.resamples)
                self.add(f"lead_{name}", estimate, condition, site, "" if name == "ev" else "nats")

    def per_site(self, selectors: str | Sequence[str]) -> dict[Site, Basis]:
        """A dictionary of its own for some sites, with an equal share of the parameters."""
        basis, out = self.inputs.basis, {}
        config, training = basis.learner.config, training_settings(self.inputs)
        same = {name: training[name] for name in ("normaliser", "norm_cap", "repeats", "only", "products", "seed")}
        batch = min(training["batch"], self.inputs.activations.tokens // 4)
        if "width" not in type(config).model_fields:
            raise ReprBasisError(f"{basis.learner.full_name} has no option 'width', so no smaller dictionary can be made",
                                 do="leave per_site out")
        small = type(basis.learner)(config.model_copy(update={"width": max(basis.d_dict // len(basis.sites), 1)}))
        small.full_name = basis.learner.full_name
        for site in self.model.info.select(selectors if isinstance(selectors, str) else list(selectors)):
            own = fit(small, self.inputs.activations, rows=self.config.per_site_rows, sites=str(site), batch=batch,
                      device=str(basis.device), progress=self.inputs.progress, capabilities=basis.capabilities, **same)
            out[site] = own.to(basis.device)
        return out


LEADS = {"lead_ev": "Explained variance", "lead_ce": "Cross-entropy", "lead_kl": "KL"}


def _clear(rows: Sequence[Measurement]) -> list[str]:
    """At how many sites the basis is better than each control, and at how many the paired interval lies above 0."""
    out = []
    for name, words in LEADS.items():
        for condition in dict.fromkeys(m.condition for m in rows if m.name == name):
            found = [m for m in rows if m.name == name and m.condition == condition]
            least = min(found, key=lambda m: m.value)
            clear = sum(m.low is not None and m.low > 0 for m in found)
            better = sum(m.value > 0 for m in found)
            out.append(f"{words}, `global` against `{condition}`: better at {better} of {len(found)} sites, clearly "
                       f"(95 % interval of the paired difference above 0) at {clear}; least lead {least.value:.3g}"
                       f"{' nats' if name != 'lead_ev' else ''} at {least.site}.")
    return out


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
