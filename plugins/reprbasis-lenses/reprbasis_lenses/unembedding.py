"""Is the residual stream constrained by the unembedding? Four claims that can fail, each beside its nulls.

    H3a readability    the stream, read by the logit lens, says what the model says: it agrees with the model's choice more often
                       than copying the habit of the current token, and diverges less than the mean prediction, whatever the token
    H3b concentration  the stream's variance prefers the directions that the unembedding amplifies most: the share in its first
                       k right singular vectors lies above random subspaces and above the same vectors with permuted coordinates
    H3c sufficiency    these directions carry the prediction: keeping them and setting the rest to the mean costs less than
                       keeping a random subspace of the same size
    H3d parts          what attention and MLPs write, and the rows of a dictionary, prefer them too

H3 as a whole at a site is H3a, H3b and H3c together. H3a is not judged at the last site, where the lens is the model itself.

`share@0.125`: share of the variance (or of an atom's squared length) in an eighth of the directions; `lift`: that over k / D;
`weighted`: logit variance over that of as much variance spread evenly, which needs no k; `filter_kl@0.5`: KL in nats
from the unchanged model when only half of the directions are kept at one site; `filter_kept`: 1 - that over the KL when the
whole site is its mean. Position 0 and tokens with massive activations are left out (`all tokens` has them) and not filtered.

Conditions: `centred` (judged), `gain`, `raw`: see `shadow.VARIANTS`; `... bottom`: the last k vectors; `haar`: random subspaces
(which is also the weight turned at random: its singular values stay, the covariance stays); `permuted`; `rotated`: the weighted
share under a weight turned at random; `pca`: the site's own principal directions on training tokens, about the most that any k
directions hold; `other layers`: those of the other sites. For atoms: `covariance`, directions as anisotropic as activations
but random; `untrained`: the dictionary before training.

Shapes: N tokens, D width, K atoms, B batch, T tokens of a row, P predicted positions, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

import reprbasis
from reprbasis.errors import SiteError
from reprbasis.interfaces.evaluator import EvaluationInputs, Evaluator, Figure, Findings, Measurement
from reprbasis.interfaces.model import ForwardResult, ModelAdapter, Start
from reprbasis.kits.components import unembedded
from reprbasis.kits.controls import untrained
from reprbasis.kits.heldout import UNSEEN, HeldOut
from reprbasis.kits.intervals import Estimate, mean, ratio
from reprbasis.kits.subspaces import covariance, draws, keep, principal, spectrum
from reprbasis.kits.tokenwise import predicts
from reprbasis.sites import Site

from .config import UnembeddingConfig
from .evaluator import Habits, Scores, score
from .lenses import FINAL, last_site, training_rows, way_out
from .shadow import (
    VARIANTS,
    Null,
    Turns,
    atom_share,
    concentration,
    frames,
    like,
    nulls,
    output_score,
    size,
    verdict,
)

CLAIMS = {"H3a": "readability", "H3b": "concentration", "H3c": "sufficiency", "H3d": "components"}
RANDOM_FILTERS = 3
BINS = 24
"""Groups of singular vectors in the profile."""


class UnembeddingTest(Evaluator[UnembeddingConfig]):
    """See the module."""

    @torch.no_grad()
    def evaluate(self, inputs: EvaluationInputs) -> Findings:
        """Measurements per site and overall, the verdict in words, figures.

        Raises:
            SiteError: a site to be judged is not part of the stream.
        """
        return _Run(self.config, inputs).all()


@dataclass
class _Run:
    config: UnembeddingConfig
    inputs: EvaluationInputs
    rows: list[Measurement] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdicts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Claim -> site -> `holds`, `fails` or `open`."""

    def __post_init__(self) -> None:
        info = self.inputs.model.info
        self.model: ModelAdapter[Any] = self.inputs.model
        self.stream = self.sites(self.config.sites)
        self.components = [s for s in self.sites(self.config.components) if s not in self.stream]
        if odd := [s for s in self.stream if s.name not in ("embed", "resid")]:
            raise SiteError(f"'{odd[0]}' is not part of the stream", do="choose from embed and resid.*")
        self.d = info.d_model
        self.ks = [size(s, self.d) for s in self.config.shares]
        self.k = size(self.config.judged, self.d)
        self.frames = frames(self.model.unembedding())
        self.frame = self.frames["centred"]
        self.turns = Turns(self.d, self.config.draws, self.inputs.seed)

    def sites(self, selectors: Any) -> list[Site]:
        """The sites of the selectors that are as wide as the stream, without `final`, which has the norm behind it."""
        info = self.model.info if hasattr(self, "model") else self.inputs.model.info
        given = selectors if isinstance(selectors, str) else list(selectors)
        return [s for s in info.select(given) if info.widths[s] == info.d_model and s != FINAL] if given else []

    def all(self) -> Findings:
        """Everything."""
        c = self.config
        read = [s for s in self.sites(c.read) if s in self.inputs.activations.sites]
        wanted = list(dict.fromkeys([*self.stream, *self.components, last_site(self.model)]))
        self.text = HeldOut.run(self.inputs, wanted, tokens=c.tokens, sequence_tokens=c.sequence_tokens)
        with self.inputs.progress.task("unembedding hypothesis", total=4, unit="claims") as task:
            for done, part in enumerate((lambda: self.concentration(), lambda: self.parts(), lambda: self.readability(read),
                                         lambda: self.sufficiency(self.sites(c.filtered)))):
                part()
                task.update(done + 1)
        return Findings(self.rows, self.figures, notes=[*self.summary(), *self.notes])

    def add(self, name: str, found: Estimate | Null, condition: str, site: Site | None, unit: str = "share",
            n: int | None = None, scale: float = 1.0) -> None:
        """A measurement."""
        where = None if site is None else str(site)
        if isinstance(found, Null):
            self.rows.append(Measurement(name, scale * found.mean, n or self.config.draws, scale * found.low, scale * found.high,
                                         condition, where, unit))
        else:
            low, high = (None if v is None else scale * v for v in (found.low, found.high))
            self.rows.append(Measurement(name, scale * found.value, found.n, low, high, condition, where, unit))

    def usual(self, site: Site) -> tuple[Tensor, Tensor]:
        """[n, D] vectors of the tokens that are measured at a site, and [n] their sequences."""
        x, body = self.text.rows[site].float(), self.text.body
        norm = x.norm(dim=1)
        body = body & (norm <= self.config.norm_cap * norm[body].median())
        return x[body], self.text.group[body]

    def pca(self, site: Site) -> Tensor | None:
        """[D, D] principal directions of a site on training tokens; None if it was not harvested."""
        activations = self.inputs.activations
        if site not in activations.sites:
            return None
        x = activations.take(site, training_rows(activations, 8192, self.inputs.seed)).float()
        norm = x.norm(dim=1)
        return principal(covariance(x[norm <= self.config.norm_cap * norm.median()]))[0].float()

    # H3b

    def concentration(self) -> None:
        """Shares of the stream's variance, their nulls, and the profile over singular vectors."""
        c, own = self.config, {s: self.pca(s) for s in self.stream}
        judged: dict[str, str] = {}
        control: dict[str, str] = {}
        turned = next(draws(self.d, 1, self.inputs.seed + 7)) @ self.frame.vectors
        profiles: list[list[float]] = []
        for site in self.stream:
            x, group = self.usual(site)
            cov = covariance(x)
            null = nulls(cov, self.frame, self.ks, self.k, self.turns, self.inputs.seed)
            for share_of, k in zip(c.shares, self.ks, strict=True):
                name = f"share@{share_of:g}"
                for variant in VARIANTS:
                    vectors = self.frames[variant].vectors
                    self.add(name, concentration(x, vectors, k, group, resamples=c.resamples), variant, site)
                    self.add(name, concentration(x, vectors, k, group, bottom=True, resamples=c.resamples),
                             f"{variant} bottom", site)
                self.add(name, null.haar[k], "haar", site)
                if k == self.k:
                    self.add(name, null.permuted, "permuted", site)
                for condition, value in self.others(site, own, cov, k).items():
                    self.rows.append(Measurement(name, value, len(x), None, None, condition, str(site), "share"))
            everywhere = self.text.rows[site].float()
            self.add(f"share@{c.judged:g}", concentration(everywhere, self.frame.vectors, self.k, self.text.group,
                                                          resamples=c.resamples), "centred, all tokens", site)
            found = concentration(x, self.frame.vectors, self.k, group, resamples=c.resamples)
            last = concentration(x, self.frame.vectors, self.k, group, bottom=True, resamples=c.resamples)
            for condition, one in (("centred", found), ("centred bottom", last), ("haar", null.haar[self.k]),
                                   ("permuted", null.permuted)):
                self.add("lift", one, condition, site, unit="", scale=self.d / self.k)
            for condition, value in self.others(site, own, cov, self.k).items():
                self.rows.append(Measurement("lift", value * self.d / self.k, len(x), None, None, condition, str(site)))
            self.weights(site, x, group, cov, null.rotated)
            judged[str(site)] = verdict(found, [null.haar[self.k], null.permuted])
            fake = concentration(x, turned, self.k, group, resamples=c.resamples)
            control[str(site)] = verdict(fake, [null.haar[self.k], null.permuted])
            profile = spectrum(cov, self.frame.vectors) / cov.trace() * self.d
            profiles.append([round(float(p.mean()), 4) for p in profile.tensor_split(min(BINS, self.d))])
        self.verdicts["H3b"], self.verdicts["H3b, rotated weight"] = judged, control
        self.draw_concentration(profiles)

    def others(self, site: Site, own: Mapping[Site, Tensor | None], cov: Tensor, k: int) -> dict[str, float]:
        """Share in the site's own principal directions, and on average in those of the other sites."""
        found = {s: float(spectrum(cov.float(), f[:, :k]).sum() / cov.trace()) for s, f in own.items() if f is not None}
        rest = [v for s, v in found.items() if s != site]
        out = {"pca": found[site]} if site in found else {}
        return out | ({"other layers": sum(rest) / len(rest)} if rest else {})

    def weights(self, site: Site, x: Tensor, group: Tensor, cov: Tensor, null: Null) -> None:
        """The weighted share of each variant, and of a weight turned at random."""
        offset = x - x.mean(0)
        for variant in VARIANTS:
            frame = self.frames[variant]
            power = (frame.power / frame.power.mean()).to(offset)
            found = ratio(((offset @ frame.vectors.to(offset)).square() * power).sum(1), offset.square().sum(1), group,
                          resamples=self.config.resamples)
            self.add("weighted", found, variant, site, unit="")
        self.add("weighted", null, "rotated", site, unit="")

    # H3d

    def parts(self) -> None:
        """Outputs of components, then atoms."""
        judged: dict[str, str] = {}
        for site in self.components:
            x, group = self.usual(site)
            found = concentration(x, self.frame.vectors, self.k, group, resamples=self.config.resamples)
            null = nulls(covariance(x), self.frame, (), self.k, self.turns, self.inputs.seed)
            against = {"haar": null.haar[self.k], "permuted": null.permuted}
            for condition, one in ({"centred": found} | against).items():
                self.add("lift", one, condition, site, unit="", scale=self.d / self.k)
            judged[str(site)] = verdict(found, list(against.values()))
        if judged:
            self.verdicts["H3d"] = judged
        if self.inputs.basis.dictionary.directions() is not None and self.inputs.basis.d_in == self.d:
            self.atoms()

    def atoms(self) -> None:
        """Dictionary rows: all, by where they live, and those that stand out most in the output, beside rows without features."""
        basis, c = self.inputs.basis, self.config
        chosen = torch.randperm(basis.d_dict, generator=torch.Generator().manual_seed(self.inputs.seed))[:c.atoms].sort().values
        rows = basis.directions(basis.sites[0])[chosen].float().cpu()  # sites differ in scale alone
        before = untrained(self.inputs).directions(basis.sites[0])[chosen].float().cpu()
        pooled = sum((covariance(self.usual(s)[0]) for s in self.components or self.stream), torch.zeros(1, dtype=torch.float64))
        pooled = pooled / pooled.trace()
        sets = {"atoms": rows, "untrained": before, "covariance": like(pooled, len(rows), self.inputs.seed),
                "haar": torch.randn(len(rows), self.d, generator=torch.Generator().manual_seed(self.inputs.seed))}
        weight = unembedded(self.model).float()
        shares = {name: atom_share(x, self.frame.vectors, self.k) for name, x in sets.items()}
        scores = {name: output_score(x, weight) for name, x in sets.items()}
        depth = self.depths(chosen)
        every = torch.ones(len(rows), dtype=torch.bool)
        groups = {"": dict.fromkeys(sets, every)}
        groups["_speaking"] = {name: s >= s.quantile(0.9) for name, s in scores.items()}
        for name, part in depth.items():
            groups[f"_{name}"] = {"atoms": part} | {other: every for other in sets if other != "atoms"}
        for suffix, masks in groups.items():
            for condition, mask in masks.items():
                if int(mask.sum()) > 1:
                    found = mean(shares[condition][mask], torch.arange(int(mask.sum())), resamples=c.resamples)
                    self.add(f"atom_lift{suffix}", found, condition, None, unit="", scale=self.d / self.k)
        for condition, s in scores.items():
            self.add("output_score", mean(s, torch.arange(len(s)), resamples=c.resamples), condition, None, unit="sd")
        edges = torch.linspace(0, float(torch.cat(list(shares.values())).quantile(0.995)), 41)
        counts = {name: torch.histogram(s.clamp_max(edges[-1]), edges).hist.int().tolist() for name, s in shares.items()}
        self.figures.append(Figure(
            "histogram", "Dictionary rows and the unembedding",
            f"Share of each row's squared length in the {self.k} directions that the unembedding amplifies most "
            f"({self.k / self.d:.3f} for a random direction). `covariance`: directions as anisotropic as component outputs, but "
            "random. The last bar gathers all beyond it.", counts, [round(float(e), 4) for e in edges], (), "share", "rows"))

    def depths(self, chosen: Tensor) -> dict[str, Tensor]:
        """Which of the chosen atoms live early, in the middle and late: by mean layer in the stream, weighted by activation."""
        basis, sites = self.inputs.basis, [s for s in self.stream if s in self.inputs.basis.sites]
        if len(sites) < 3:
            return {}
        rows = (self.usual(s)[0].to(self.model.device) for s in sites)
        total = torch.stack([basis.encode(s, x)[:, chosen].abs().sum(0).cpu() for s, x in zip(sites, rows, strict=True)])
        alive = total.sum(0) > 0
        middle = (torch.arange(len(sites))[:, None] * total).sum(0) / total.sum(0).clamp_min(1e-12) / (len(sites) - 1)
        return {"early": alive & (middle < 1 / 3), "middle": alive & (middle >= 1 / 3) & (middle < 2 / 3),
                "late": alive & (middle >= 2 / 3)}

    # H3a

    def readability(self, sites: Sequence[Site]) -> None:
        """The logit lens against habits, beside the closed-form affine lens as the most that an affine reading gets."""
        registry = reprbasis.registry()
        logit, ridge = registry.create("lens", "logit"), registry.create("lens", "ridge", rows=8192)
        ridge = ridge.restore(ridge.fit(self.model, self.inputs.activations, sites, seed=self.inputs.seed))
        where = self.text.body & (self.text.following >= 0) & ~self.text.image
        where &= where.cumsum(0) <= self.config.read_tokens
        if not bool(where.any()) or not sites:
            return
        readers = {(name, str(s)): (lens, s, s) for name, lens in (("logit", logit), ("ridge", ridge)) for s in sites}
        found = score(self.model, self.text, where, readers, Habits.of(self.model, self.inputs.activations, rows=4096,
                                                                       seed=self.inputs.seed))
        group, judged = self.text.group[where], {}
        for (condition, site), scores in found.items():
            for name, unit in (("kl", "nats"), ("top1", "share")):
                if values := getattr(scores, name):
                    e = mean(torch.cat(values), group, resamples=self.config.resamples)
                    self.add(name, e, condition, Site.parse(site) if site else None, unit)
        for site in sites:
            if site != last_site(self.model):  # there the lens is the model
                judged[str(site)] = self.readable(found["logit", str(site)], found["copy", ""], found["mean", ""], group)
        if judged:
            self.verdicts["H3a"] = judged
        names = [str(s) for s in sites]
        if len(sites) > 1:
            series = {n: [float(torch.cat(found[n, s].top1).mean()) for s in names] for n in ("logit", "ridge")}
            series |= {n: [float(torch.cat(found[n, ""].top1).mean())] * len(names) for n in ("copy", "mean")}
            self.figures.append(Figure(
                "line", "H3a: readability", "Share of tokens whose likeliest next token, read at the site, is the model's. "
                "`logit`: through the unembedding as it is; `ridge`: moved to the last site by least squares first, roughly what "
                "an affine reading can get; `copy`: the model's habit after the same token, which needs no layer at all.", series,
                names, x_label="site", y_label="agreement"))

    def readable(self, logit: Scores, copy: Scores, average: Scores, group: Tensor) -> str:
        """Both paired differences must be clear."""
        gains = [mean(torch.cat(logit.top1) - torch.cat(copy.top1), group, resamples=self.config.resamples),
                 mean(torch.cat(average.kl) - torch.cat(logit.kl), group, resamples=self.config.resamples)]
        lows = [e.value if e.low is None else e.low for e in gains]
        return "holds" if min(lows) > 0 else "fails" if min(e.value for e in gains) <= 0 else "open"

    # H3c

    def sufficiency(self, sites: Sequence[Site]) -> None:
        """Keep a subspace at one site, run on, compare."""
        batches = self.few()
        tokens = sum(int(b.mask.sum()) for b in batches)
        judged: dict[str, str] = {}
        series: dict[str, list[float]] = {}
        turned = [f.float() for f in draws(self.d, RANDOM_FILTERS, self.inputs.seed + 3)]
        wheres = [predicts(b) & b.flag(UNSEEN) & (b.positions > 0) for b in batches]
        if not sites or not any(bool(w.any()) for w in wheres):
            return
        last = last_site(self.model)
        clean = [self.model.forward(b.to(self.model.device), capture=[*sites, last], logits="none") for b in batches]

        def said(result: ForwardResult, where: Tensor) -> Tensor:
            return way_out(self.model, result.sites[last][where.to(self.model.device)], last).float().log_softmax(-1)

        references = [said(r, w) for r, w in zip(clean, wheres, strict=True)]
        group = torch.cat([b.sequences[w] for b, w in zip(batches, wheres, strict=True)])
        for site in sites:
            x, _ = self.usual(site)
            middle, cap = x.mean(0), self.config.norm_cap * float(x.norm(dim=1).median())
            own = self.pca(site)

            def lost(frame: Tensor, site: Site = site, middle: Tensor = middle, cap: float = cap) -> Tensor:
                out = []
                for result, batch, where, log_p in zip(clean, batches, wheres, references, strict=True):
                    x = result.sites[site]
                    usual = (batch.positions.to(x.device) > 0) & (x.norm(dim=-1) <= cap)
                    value = torch.where(usual[..., None], keep(x, frame.to(x), middle.to(x)), x)
                    changed = self.model.forward(batch.to(x.device), start=Start(site, value), capture=[last], stop_at=last,
                                                 logits="none")
                    out.append(torch.linalg.vecdot(log_p.exp(), log_p - said(changed, where)).clamp_min(0).cpu())
                return torch.cat(out)

            nothing = lost(torch.zeros(self.d, 1))
            self.add("filter_kl@0", mean(nothing, group, resamples=self.config.resamples), "mean", site, "nats")
            self.add("filter_kl@0", Estimate(0.0, None, None, len(nothing), 1), "unchanged", site, "nats")
            answers = []
            for part in self.config.kept:
                k = size(part, self.d)
                vectors = self.frame.vectors.float()
                found = {"top": lost(vectors[:, :k]), "bottom": lost(vectors[:, -k:]),
                         "haar": torch.stack([lost(q[:, :k]) for q in turned]).mean(0)}
                found |= {} if own is None else {"pca": lost(own[:, :k])}
                for condition, values in found.items():
                    self.add(f"filter_kl@{part:g}", mean(values, group, resamples=self.config.resamples), condition, site, "nats")
                    self.add(f"filter_kept@{part:g}", ratio(values, nothing, group, resamples=self.config.resamples).complement(),
                             condition, site)
                    if part == self.config.kept[0]:
                        series.setdefault(condition, []).append(float(values.mean()))
                if k < self.d:
                    gain = mean(found["haar"] - found["top"], group, resamples=self.config.resamples)
                    answers.append("holds" if gain.low is not None and gain.low > 0 else "fails" if gain.value <= 0 else "open")
            series.setdefault("mean", []).append(float(nothing.mean()))
            if answers:
                judged[str(site)] = "fails" if "fails" in answers else "open" if "open" in answers else "holds"
        if judged:
            self.verdicts["H3c"] = judged
        self.notes.append(f"H3c: {tokens} held-out tokens, {RANDOM_FILTERS} random subspaces; position 0 and massive activations "
                          "are not filtered.")
        if len(sites) > 1:
            k = size(self.config.kept[0], self.d)
            self.figures.append(Figure(
                "line", "H3c: sufficiency", f"KL from the unchanged model when, at one site, only {k} of {self.d} directions are "
                "kept and the rest is set to its mean. If the unembedding's first directions (`top`) carried the prediction, "
                "keeping them would cost less than keeping random ones (`haar`); `pca`: the site's own directions; `mean`: none.",
                series, [str(s) for s in sites], x_label="site", y_label="KL (nats)"))

    def few(self) -> list[Any]:
        """The first batches of the held-out text, for about `read_tokens` tokens."""
        out, total = [], 0
        for batch in self.text.batches:
            out.append(batch)
            total += int(batch.mask.sum())
            if total >= self.config.read_tokens:
                break
        return out

    # together

    def summary(self) -> list[str]:
        """The verdicts in words; also as measurements `holds`, `fails`: shares of the sites."""
        if self.k >= self.d:
            return [f"k = D = {self.d}: every vector lies in the row space of the unembedding, whatever the model. This is no "
                    "evidence for anything, and no verdict is given. Choose `judged` below 1."]
        out = []
        for claim, sites in self.verdicts.items():
            counts = {answer: sum(v == answer for v in sites.values()) for answer in ("holds", "fails", "open")}
            for answer in ("holds", "fails"):
                self.rows.append(Measurement(answer, counts[answer] / len(sites), len(sites), None, None, claim, None, "share"))
            where = ", ".join(_ranges([s for s, v in sites.items() if v == "holds"])) or "nowhere"
            title = CLAIMS.get(claim, "control, must fail")
            out.append(f"{claim} ({title}): holds at {counts['holds']} of {len(sites)} sites, fails at {counts['fails']}, open "
                       f"at {counts['open']}. It holds at: {where}.")
        out += self.sizes()
        three = [self.verdicts.get(c, {}) for c in ("H3a", "H3b", "H3c")]
        common = [s for s in three[0] if all(s in v for v in three)]
        if common:
            both = [s for s in common if all(v[s] == "holds" for v in three)]
            self.rows.append(Measurement("holds", len(both) / len(common), len(common), None, None, "H3", None, "share"))
            answer = "HOLDS" if len(both) == len(common) else "FAILS" if not both else "holds in part"
            out.insert(0, "The unembedding hypothesis in its strong form (readable, concentrated and sufficient at once) "
                          f"{answer}: {len(both)} of the {len(common)} sites where all three were judged.")
        return out

    def sizes(self) -> list[str]:
        """How large the effects are, in words: a lift can be clear of its nulls and still be next to nothing."""
        at = {(m.name, m.condition, m.site): m.value for m in self.rows}
        out = []
        for what, sites in (("stream", self.stream), ("components", self.components)):
            lifts = {str(s): at["lift", "centred", str(s)] for s in sites if ("lift", "centred", str(s)) in at}
            if lifts:
                best, least = max(lifts, key=lifts.__getitem__), min(lifts, key=lifts.__getitem__)
                best_of = [at["lift", "pca", s] for s in lifts if ("lift", "pca", s) in at]
                most = f"; the site's own {self.k} directions: {median(best_of):.2f}" if best_of else ""
                out.append(f"Lift of the {what} at k = {self.k} of {self.d} (1: chance): median {median(lifts.values()):.2f}, "
                           f"least {lifts[least]:.2f} at {least}, most {lifts[best]:.2f} at {best}{most}.")
        atoms = {c: at.get(("atom_lift", c, None)) for c in ("atoms", "covariance", "untrained")}
        if all(v is not None for v in atoms.values()):
            out.append(f"Lift of dictionary rows: {atoms['atoms']:.2f}, of random directions as anisotropic as component outputs "
                       f"{atoms['covariance']:.2f}, of the dictionary before training {atoms['untrained']:.2f}.")
        if Site("embed") in self.stream:
            out.append("If the model ties its embeddings, `embed` is made of rows of the unembedding, so concentration there and "
                       "in the first layers says little.")
        return out

    def draw_concentration(self, profiles: list[list[float]]) -> None:
        """Lift over depth with its nulls; the variants; the profile."""
        names = [str(s) for s in self.stream]
        if len(names) < 2:
            return
        about = f"share@{self.config.judged:g}"
        at = {(m.name, m.condition, m.site): m for m in self.rows}
        lift = self.d / self.k

        def line(condition: str, bound: str = "value") -> list[float] | None:
            found = [at.get((about, condition, s)) for s in names]
            return None if any(m is None for m in found) else [lift * getattr(m, bound) for m in found if m is not None]

        for title, wanted, caption in (
                ("H3b: concentration", ("centred", "centred bottom", "pca", "other layers"),
                 "Variance in k directions over what chance gives (1). `centred`: the directions that the unembedding amplifies "
                 "most; `bottom`: least; `pca`: the site's own on training text, about the most there is; `other layers`: those "
                 "of other sites. Nulls (97.5 % quantiles): random subspaces, and the same vectors with coordinates permuted."),
                ("H3b: the choice of weight", VARIANTS,
                 "The same for the unembedding as it is (`raw`), with the final norm's gain folded in (`gain`), and with its "
                 "mean row taken off too (`centred`), which the softmax cannot see.")):
            series = {c: line(c) for c in wanted} | {f"{c} 97.5 %": line(c, "high") for c in ("haar", "permuted")}
            self.figures.append(Figure("line", title, caption, {n: v for n, v in series.items() if v}, names, x_label="site",
                                       y_label=f"lift at k = {self.k}"))
        edges = [p[0].item() for p in torch.arange(self.d).tensor_split(min(BINS, self.d))]
        self.figures.append(Figure(
            "heatmap", "Variance along the unembedding's singular vectors",
            "Columns: groups of singular vectors, the most amplified on the left, labelled by the first of each. Colour: "
            "variance over an even spread. A constrained stream would be bright on the left; brightness on the right is variance "
            "that the unembedding hardly sees.", {"lift": profiles}, [str(e) for e in edges], names, "singular vector", "site"))


def _ranges(names: Sequence[str]) -> list[str]:
    """`resid.3, resid.4, resid.5` -> `resid.3-5`."""
    out: list[list[Site]] = []
    for site in map(Site.parse, names):
        last = out[-1][-1] if out else None
        if last and site.layer is not None and last.layer is not None and last.name == site.name and site.layer == last.layer + 1:
            out[-1].append(site)
        else:
            out.append([site])
    return [str(run[0]) + (f"-{run[-1].layer}" if len(run) > 1 else "") for run in out]
