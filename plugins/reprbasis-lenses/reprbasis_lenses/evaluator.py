"""How well lenses read the sites of a model: on held-out text, beside what would be read if there were nothing to read.

Per site, lens and token that predicts a next one (new tokens only, without position 0):

    kl     KL(model || reading) in nats
    ce     cross-entropy of the reading for the token that follows, nats
    top1   whether the likeliest token is the model's likeliest
    settled  over all sites: share of the depth after which the reading's likeliest token stays the model's (1: only at the end)

At tokens that show a piece of an image nothing is predicted; `kl_image` and `top1_image` say whether the reading agrees with what
the model says there.

Conditions: the name of each lens (`logit` is the untrained control of those that learn); `LENS shuffled`: what the lens
learned for another site; without a site: `mean`, the model's mean prediction over training tokens, whatever the token;
`copy`, the model's most frequent choice after the same token in training (top1 only); `model`: the model itself.

Shapes: N tokens, n tokens of a block, V vocabulary, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import reprbasis
from reprbasis.interfaces.evaluator import EvaluationInputs, Evaluator, Figure, Findings, Measurement
from reprbasis.interfaces.lens import Lens
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.kits.heldout import HeldOut
from reprbasis.kits.intervals import mean
from reprbasis.runtime.activations import Activations
from reprbasis.runtime.reading import read_text
from reprbasis.sites import Site

from .config import LensesConfig
from .lenses import FINAL, last_site, training_rows, way_out

BLOCK = 256
"""Tokens whose logits are held at once."""


@dataclass(frozen=True)
class Habits:
    """What the model says on training tokens: its mean prediction [V], and after each token its most frequent choice."""

    mean: Tensor
    after: Mapping[int, int]

    @classmethod
    @torch.no_grad()
    def of(cls, model: ModelAdapter[Any], activations: Activations, *, rows: int, seed: int) -> "Habits":
        """From up to so many training tokens, read at the last site."""
        chosen = training_rows(activations, rows, seed)
        last, total, said = last_site(model), torch.zeros(model.info.vocab, dtype=torch.float64), []
        for part in activations.take(last, chosen).split(BLOCK):
            p = way_out(model, part.to(model.device, torch.float32), last).float().softmax(-1)
            total += p.sum(0).double().cpu()
            said.append(p.argmax(-1).cpu())
        pairs, counts = torch.stack([activations.table.ids[chosen], torch.cat(said)], 1).unique(dim=0, return_counts=True)
        best = counts.argsort(stable=True)  # later entries win: the most frequent
        return cls((total / total.sum()).float(), {int(a): int(b) for a, b in pairs[best].tolist()})


@dataclass
class Scores:
    """Per-token figures of one way of reading, in the order of the blocks."""

    kl: list[Tensor] = field(default_factory=list)
    ce: list[Tensor] = field(default_factory=list)
    top1: list[Tensor] = field(default_factory=list)

    def add(self, log_q: Tensor, p: Tensor, negentropy: Tensor, said: Tensor, following: Tensor) -> None:
        """Take a block [n, V] of log probabilities in, given the model's p [n, V]."""
        self.kl.append((negentropy - torch.linalg.vecdot(p, log_q)).clamp_min(0).cpu())
        self.ce.append(-log_q.gather(1, following.clamp_min(0)[:, None])[:, 0].cpu())
        self.top1.append((log_q.argmax(-1) == said).float().cpu())


@torch.no_grad()
def score(model: ModelAdapter[Any], text: HeldOut, where: Tensor, readers: Mapping[tuple[str, str], tuple[Lens[Any], Site, Site]],
          habits: Habits | None) -> dict[tuple[str, str], Scores]:
    """Read the tokens `where` [N] bool in every way.

    Args:
        model, text: what was run; the last site must be among its rows.
        where: which tokens.
        readers: (condition, site) -> lens, the site whose vectors it reads, and the site it takes them for.
        habits: for the baselines `mean` and `copy`, under site ''; None: without them.

    Cost: 2 D V FLOPs for each token and reader.
    """
    out = {key: Scores() for key in readers}
    base = {(c, ""): Scores() for c in ("model", "mean", "copy")} if habits is not None else {}
    last = last_site(model)
    for rows in torch.nonzero(where).flatten().split(BLOCK):
        log_p = way_out(model, text.rows[last][rows].to(model.device), last).float().log_softmax(-1)
        p, following = log_p.exp(), text.following[rows].to(model.device)
        known = p, torch.linalg.vecdot(p, log_p), log_p.argmax(-1), following
        for key, (lens, site, taken) in readers.items():
            logits = lens.read(model, text.rows[site][rows].to(model.device), taken)
            out[key].add(logits.float().log_softmax(-1), *known)
        if habits is not None:
            base["model", ""].add(log_p, *known)
            base["mean", ""].add(habits.mean.to(log_p).clamp_min(1e-20).log().expand_as(log_p), *known)
            guess = torch.tensor([habits.after.get(i, int(habits.mean.argmax())) for i in text.ids[rows].tolist()])
            base["copy", ""].top1.append((guess == known[2].cpu()).float())
    return out | base


class Lenses(Evaluator[LensesConfig]):
    """Lenses side by side."""

    @torch.no_grad()
    def evaluate(self, inputs: EvaluationInputs) -> Findings:
        """Measurements per site and lens."""
        model, c = inputs.model, self.config
        sites = [s for s in model.info.select(c.sites) if s in inputs.activations.sites]
        text = HeldOut.run(inputs, list(dict.fromkeys([*sites, last_site(model)])), tokens=c.tokens,
                           sequence_tokens=c.sequence_tokens)
        lenses, notes = self.fitted(inputs, sites)
        readers = {(name, str(site)): (lens, site, site) for name, lens in lenses.items() for site in sites}
        learned = [s for s in sites if s not in (FINAL, last_site(model))]
        if c.shuffled and len(learned) > 1:
            for name, lens in lenses.items():
                if getattr(lens, "values", None):
                    readers |= {(f"{name} shuffled", str(s)): (lens, s, learned[(i + len(learned) // 2) % len(learned)])
                                for i, s in enumerate(learned)}
        habits = Habits.of(model, inputs.activations, rows=4096, seed=inputs.seed)
        where = text.body & (text.following >= 0) & ~text.image
        rows: list[Measurement] = []
        found: dict[tuple[str, str], Scores] = {}
        if bool(where.any()):
            found = score(model, text, where, readers, habits)
            rows += self.measured(found, text.group[where], "")
            rows += self.settled(found, list(lenses), [str(s) for s in sites], text.group[where])
            notes += self.leads(found, list(lenses), [str(s) for s in sites], text.group[where])
        image = text.body & text.image
        if bool(image.any()):
            rows += self.measured(score(model, text, image, readers, habits), text.group[image], "_image")
        notes.insert(0, f"Lenses read {int(where.sum())} held-out tokens of {len(text.group.unique())} sequences"
                        f"{f' and {int(image.sum())} image tokens' if bool(image.any()) else ''}: those whose text so far begins "
                        "no training sequence, without position 0.")
        figures = self.curves(rows, list(lenses), [str(s) for s in sites])
        if c.shown_tokens:
            sequence = inputs.held_out()[0].cut(c.sequence_tokens)
            shown = range(-min(c.shown_tokens, len(sequence)), 0)
            figures.append(read_text(model, sequence, lenses, sites, positions=shown).figure())
        return Findings(rows, figures, notes=notes)

    def fitted(self, inputs: EvaluationInputs, sites: Sequence[Site]) -> tuple[dict[str, Lens[Any]], list[str]]:
        """The lenses by name, each having learned to read the sites."""
        out: dict[str, Lens[Any]] = {}
        for selection in self.config.lenses:
            lens, name = reprbasis.registry().build(selection), selection.name.rpartition("/")[2]
            name = name if name not in out else f"{name} {sum(n.startswith(name) for n in out) + 1}"
            fit = lens.fit(inputs.model, inputs.activations, sites, seed=inputs.seed, progress=inputs.progress)
            out[name] = lens.restore(fit)
        return out, []

    def measured(self, found: Mapping[tuple[str, str], Scores], group: Tensor, suffix: str) -> list[Measurement]:
        """A row for each figure of each way of reading."""
        out = []
        for (condition, site), scores in found.items():
            for name, unit in (("kl", "nats"), ("ce", "nats"), ("top1", "share")):
                values = getattr(scores, name)
                if values and not (suffix and name == "ce"):
                    e = mean(torch.cat(values), group, resamples=self.config.resamples)
                    out.append(Measurement(name + suffix, e.value, e.n, e.low, e.high, condition, site or None, unit))
        return out

    def settled(self, found: Mapping[tuple[str, str], Scores], lenses: Sequence[str], sites: Sequence[str],
                group: Tensor) -> list[Measurement]:
        """Share of the depth after which the reading's choice stays the model's."""
        out = []
        for name in lenses:
            right = torch.stack([torch.cat(found[name, s].top1) for s in sites])
            stays = right.flip(0).cumprod(0).sum(0)  # sites from the end that agree
            e = mean(1 - stays / len(sites), group, resamples=self.config.resamples)
            out.append(Measurement("settled", e.value, e.n, e.low, e.high, name, None, "share"))
        chance = torch.cat(found["copy", ""].top1) if ("copy", "") in found else torch.zeros(len(group))
        e = mean(1 - chance, group, resamples=self.config.resamples)  # a reading that does not change is settled at once or never
        return [*out, Measurement("settled", e.value, e.n, e.low, e.high, "copy", None, "share")]

    def leads(self, found: Mapping[tuple[str, str], Scores], lenses: Sequence[str], sites: Sequence[str],
              group: Tensor) -> list[str]:
        """In words: at how many sites each lens reads better than the first, paired token by token."""
        out, first = [], lenses[0]
        for name in lenses[1:]:
            leads = {s: mean(torch.cat(found[first, s].kl) - torch.cat(found[name, s].kl), group, resamples=self.config.resamples)
                     for s in sites}
            clear = sum(e.low is not None and e.low > 0 for e in leads.values())
            worse = sum(e.high is not None and e.high < 0 for e in leads.values())
            out.append(f"Lens `{name}` against `{first}`: lower KL at {sum(e.value > 0 for e in leads.values())} of {len(sites)} "
                       f"sites, clearly (95 % interval of the paired difference) at {clear}, clearly higher at {worse}.")
        return out

    def curves(self, rows: Sequence[Measurement], lenses: Sequence[str], sites: Sequence[str]) -> list[Figure]:
        """KL and agreement over depth."""
        out = []
        for name, title, caption, flat in (
                ("kl", "How far each reading is from what the model says",
                 "KL from the model's prediction to the reading, nats; lower is better. `mean` is the model's mean prediction, "
                 "whatever the token: a reading above it says less than nothing.", ("mean",)),
                ("top1", "How often the reading's choice is the model's",
                 "Share of tokens whose likeliest next token is the same. `copy`: the model's most frequent choice after the "
                 "same token, which needs no layer at all; `mean`: its most frequent choice.", ("copy", "mean"))):
            at = {(m.condition, m.site): m.value for m in rows if m.name == name}
            conditions = [c for c in dict.fromkeys(m.condition for m in rows) if all((c, s) in at for s in sites)]
            series = {c: [at[c, s] for s in sites] for c in conditions}
            series |= {c: [at[c, None]] * len(sites) for c in flat if (c, None) in at}
            if series and len(sites) > 1:
                out.append(Figure("line", title, caption, series, list(sites), x_label="site", y_label=name))
        return out
