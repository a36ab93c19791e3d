"""Does one dictionary for all layers work? Against one for each layer: at equal parameters, at equal width, at more compute.

    python examples/global_vs_per_layer.py runs/quickstart/acts-* runs/quickstart/further-* --out PAGE.md

The activations are those of `reprbasis run examples/quickstart_results.yaml`: `acts` to train on, `further` to measure on.

Shapes: S sites, N tokens, P predicted positions, K latents, D width.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from reprbasis_evaluators.heldout import HeldOut
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

import reprbasis as rb
from reprbasis.interfaces.evaluator import EvaluationInputs
from reprbasis.interfaces.model import Replace
from reprbasis.kits.intervals import mean, ratio

GLOBAL, PARAMETERS, WIDTH, MORE = "global", "per layer, equal parameters", "per layer, equal width", "per layer, width and rows"
CONDITIONS = (GLOBAL, PARAMETERS, WIDTH, MORE)


@dataclass(frozen=True)
class Plan:
    """How wide each dictionary of a condition is and how many rows it is trained on."""

    width: int
    rows: int
    apart: bool

    @classmethod
    def of(cls, condition, width, rows, sites):
        """The three at equal compute: S dictionaries of width K / S on all rows, or of width K on a share 1 / S of them."""
        return {GLOBAL: cls(width, rows, False), PARAMETERS: cls(width // sites, rows, True),
                WIDTH: cls(width, rows // sites, True), MORE: cls(width, rows, True)}[condition]

    def parameters(self, d, sites):
        """Both weight matrices, thresholds and biases of every dictionary."""
        return (sites if self.apart else 1) * (2 * d * self.width + self.width + d)

    def flops(self, d, sites, k):
        """Training with the sparse step: 2 D K a row for the pre-activations and 8 D for each active latent."""
        return (sites if self.apart else 1) * self.rows * (2 * d * self.width + 8 * d * k)


def trained(acts, sites, plan, given, seed, keep):
    """Site -> basis, and the CPU seconds it took; what `keep` holds already is read back."""
    groups = [[s] for s in sites] if plan.apart else [list(sites)]
    out, spent = {}, 0.0
    for group in groups:
        what = f"{'-'.join(str(s.layer) for s in group)}-{plan.width}-{plan.rows}-{given.k}-{given.batch}-{seed}"
        folder = keep / what
        if not (folder / "manifest.json").exists():
            learner = rb.create("learner", "topk", width=plan.width, k=given.k)
            start = time.process_time()
            basis = rb.fit(learner, acts, rows=plan.rows, sites=group, batch=given.batch, lr=given.lr, seed=seed)
            basis.details["cpu_seconds"] = time.process_time() - start
            rb.save(basis, folder)
            print(f"{what}: {basis.details['cpu_seconds']:.0f} s", file=sys.stderr, flush=True)
        basis = rb.load(folder)
        spent += basis.details["cpu_seconds"]
        out |= dict.fromkeys(group, basis)
    return out, spent


def remembered(path, make):
    """The tensors in a file, made first if there is none: an interrupted run goes on where it was."""
    if not path.exists():
        save_file({"/".join(map(str, name)): value.contiguous() for name, value in make().items()}, path)
        print(path.name, file=sys.stderr, flush=True)
    return {tuple(name.split("/")): value for name, value in load_file(path).items()}


def measured(text, bases, sites):
    """(site or `all`, measure) -> per token: squared error, active latents, loss and divergence when the model sees only that."""
    out, all_at_once = {}, [[] for _ in text.batches]
    for site in sites:
        codes = [bases[site].encode(site, x) for x in text.values(site)]
        replaced = [bases[site].decode(site, z) for z in codes]
        out[site, "lost"] = (text.real(text.values(site)) - text.real(replaced)).square().sum(-1)[text.body]
        out[site, "l0"] = (text.real(codes) > 0).sum(-1).double()[text.body]
        out |= behaviour(text, text.continued(site, replaced), site)
        for edits in all_at_once:
            edits.extend(bases[site].splice([site], error="none"))
    results = [text.model.forward(c.batch, edits=e) for c, e in zip(text.clean, all_at_once, strict=True)]
    return out | behaviour(text, results, "all")


def behaviour(text, results, site):
    """Loss above that of the unchanged model, and KL from it, at each of the P positions."""
    pairs = text.compare(results)
    more = [loss - reference.loss for reference, (loss, _) in zip(text.references, pairs, strict=True)]
    return {(site, "ce"): torch.cat(more), (site, "kl"): torch.cat([kl for _, kl in pairs])}


def mean_ablation(text, sites):
    """The same where every token is replaced by the site's mean."""
    out = {}
    for site in sites:
        out |= behaviour(text, text.continued(site, [text.mean(site).expand_as(x) for x in text.values(site)]), site)
    results = [text.model.forward(c.batch, edits=[Replace(s, text.mean(s).expand_as(c.sites[s])) for s in sites])
               for c in text.clean]
    return out | behaviour(text, results, "all")


def sharing(text, basis, sites, generator):
    """How latents of one dictionary are shared: [(name, value for the basis, value by chance)]."""
    active = torch.stack([text.real([basis.encode(s, x) for x in text.values(s)])[text.body] > 0 for s in sites])  # [S, N, K]
    rate = active.double().mean(1)
    alive = active.any(1).any(0)
    shuffled = torch.stack([a[torch.randperm(len(a), generator=generator)] for a in active])

    def again(x):
        """Share of the latents active for a token that are active for the same token at the next of the sites."""
        return float((x[:-1] & x[1:]).sum() / x[:-1].sum())

    p = rate[:, alive] / rate[:, alive].sum(0)
    effective = (-(p * p.clamp_min(1e-12).log()).sum(0)).exp().mean()
    used = (rate[:, alive] > 1e-4).double().sum(0)
    return {"alive latents": float(alive.sum()), "sites at which an alive latent is used, of S": float(used.mean()),
            "effective sites, exp(entropy)": float(effective), "active again at the next site, same token": again(active),
            "active again at the next site, another token": again(shuffled)}


def twins(bases, others, sites, step):
    """Mean over latents of the largest cosine between decoder rows of two sites, `step` apart; `others`: of another seed.

    Two dictionaries of one seed begin with the same directions and would look alike for that reason alone.
    """
    out = []
    for a, b in zip(sites, sites[step:], strict=False):
        one, two = (normalize(x.dictionary.directions(), dim=-1) for x in (bases[a], others[b]))
        out.append((one @ two.T).amax(1).mean())
    return float(torch.stack(out).mean())


def main():
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activations", type=Path)
    parser.add_argument("further", type=Path)
    parser.add_argument("--checkpoint", default="smollm2-135m-instruct")
    parser.add_argument("--sites", default="resid.4::5")
    parser.add_argument("--width", type=int, default=1152, help="latents of the global dictionary")
    parser.add_argument("--rows", type=int, default=180_000, help="rows the global dictionary is trained on")
    parser.add_argument("--k", type=int, default=16, help="active latents, the same everywhere")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=700, help="held-out tokens that are measured")
    parser.add_argument("--keep", type=Path, default=Path("runs/global_vs_per_layer"), help="where trained dictionaries are kept")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    acts, further = rb.load(given.activations), rb.load(given.further)
    sites = acts.select(given.sites)
    bases, spent = {}, {}
    for condition in CONDITIONS:
        plan = Plan.of(condition, given.width, given.rows, len(sites))
        for seed in range(given.seeds):
            bases[condition, seed], spent[condition, seed] = trained(acts, sites, plan, given, seed, given.keep)
    model = rb.create("model", "llama", checkpoint=given.checkpoint)
    text = HeldOut(EvaluationInputs(model, bases[GLOBAL, 0][sites[0]], acts, further), tokens=given.tokens, sequence_tokens=96)
    about = f"{given.width}-{given.rows}-{given.k}-{given.batch}-{text.tokens}"
    ablated = remembered(given.keep / f"mean-{about}.safetensors", partial(mean_ablation, text, sites))
    found = {(condition, seed): remembered(given.keep / f"{CONDITIONS.index(condition)}-{seed}-{about}.safetensors",
                                           partial(measured, text, b, sites))
             for (condition, seed), b in bases.items() if condition != MORE or seed == 0}
    spread = {s: (text.real(text.values(s)) - text.mean(s)).square().sum(-1)[text.body] for s in sites}
    page = report(given, text, sites, bases, spent, found, spread, ablated)
    if given.out:
        given.out.write_text(page + "\n", "utf-8")
    print(page)


def told(estimate):
    """A value with its interval."""
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def report(given, text, sites, bases, spent, found, spread, ablated):
    """The page."""
    seeds, d = range(given.seeds), text.model.info.d_model
    owner = text.owner[text.body]

    def over_seeds(condition, site, name):
        return torch.stack([found[condition, seed][str(site), name] for seed in seeds if (condition, seed) in found]).mean(0)

    def fvu(condition, site, against=None):
        lost = over_seeds(condition, site, "lost") - (0 if against is None else over_seeds(against, site, "lost"))
        return ratio(lost, spread[site], owner)

    def kept(condition, site, name, against=None):
        if against is None:
            return ratio(over_seeds(condition, site, name), ablated[str(site), name], text.group).complement()
        return mean(over_seeds(condition, site, name) - over_seeds(against, site, name), text.group)

    def table(head, rows):
        return ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rows), ""]

    lines = HEAD.format(
        command=f"python examples/global_vs_per_layer.py runs/quickstart/acts-* runs/quickstart/further-*"
                f" --width {given.width} --rows {given.rows} --k {given.k} --seeds {given.seeds} --tokens {given.tokens}",
        sites=", ".join(map(str, sites)), k=given.k, tokens=text.tokens, positions=text.positions, groups=text.groups,
        seeds=given.seeds, batch=given.batch, lr=given.lr, original=text.original, model=given.checkpoint).splitlines()
    plans = {c: Plan.of(c, given.width, given.rows, len(sites)) for c in CONDITIONS}
    lines += ["## What is compared", *table(
        ("condition", "dictionaries", "latents each", "rows each", "parameters", "training TFLOP", "CPU seconds"),
        ((c, str(len(sites) if p.apart else 1), str(p.width), str(p.rows), f"{p.parameters(d, len(sites)) / 1e6:.2f} M",
          f"{p.flops(d, len(sites), given.k) / 1e12:.2f}", f"{sum(spent[c, s] for s in seeds) / given.seeds:.0f}")
         for c, p in plans.items()))]
    lines += ["## Unexplained variance (FVU), mean over seeds, with 95 % intervals over dialogues", *table(
        ("site", *CONDITIONS), ((str(s), *(told(fvu(c, s)) for c in CONDITIONS)) for s in sites))]
    lines += ["Difference in FVU to the global dictionary, paired token by token; above 0: the global one explains more.", *table(
        ("site", *CONDITIONS[1:]), ((str(s), *(told(fvu(c, s, GLOBAL)) for c in CONDITIONS[1:])) for s in sites))]
    lines += ["FVU of each seed, mean over sites: " + "; ".join(
        f"{c} " + ", ".join(f"{sum(float(found[c, i][str(s), 'lost'].sum() / spread[s].sum()) for s in sites) / len(sites):.3f}"
                            for i in seeds if (c, i) in found) for c in CONDITIONS) + ".",
        "Active latents (mean over sites): " + "; ".join(
            f"{c} {float(torch.stack([over_seeds(c, s, 'l0').mean() for s in sites]).mean()):.1f}" for c in CONDITIONS) + ".", ""]
    where = (*sites, "all")
    lines += ["## Cross-entropy recovered (1: nothing lost, 0: as mean ablation), one site at a time and all at once", *table(
        ("site", *CONDITIONS), ((str(s), *(told(kept(c, s, "ce")) for c in CONDITIONS)) for s in where))]
    lines += ["Difference in cross-entropy to the global dictionary, nats, paired; above 0: the global one is better.", *table(
        ("site", *CONDITIONS[1:]), ((str(s), *(told(kept(c, s, "ce", GLOBAL)) for c in CONDITIONS[1:])) for s in where))]
    lines += ["The same for KL from the unchanged model, nats.", *table(
        ("site", *CONDITIONS[1:]), ((str(s), *(told(kept(c, s, "kl", GLOBAL)) for c in CONDITIONS[1:])) for s in where))]
    lines += reuse(text, bases, sites, seeds)
    return "\n".join(lines)


def reuse(text, bases, sites, seeds):
    """What the layers share, as the global dictionary uses it and as dictionaries of their own find it."""
    generator = torch.Generator().manual_seed(0)
    lines = ["## Reuse", "", "Of the global dictionary, one column a seed:", "",
             "| measure |" + "".join(f" seed {i} |" for i in seeds), "|---|" + "---|" * len(seeds)]
    shared = [sharing(text, bases[GLOBAL, i][sites[0]], sites, generator) for i in seeds]
    lines += [f"| {name} | " + " | ".join(f"{x[name]:.4g}" for x in shared) + " |" for name in shared[0]]
    lines += ["", "Of dictionaries of one layer each: mean over latents of the largest cosine to a decoder row of another",
              "dictionary, trained with another seed (in normalised coordinates).", "",
              "| dictionaries | same site | next site | furthest site | random directions |", "|---|---|---|---|---|"]
    for condition in CONDITIONS[1:]:
        one, two = bases[condition, 0], bases[condition, seeds[-1]]
        size = one[sites[0]].dictionary.directions().shape
        noise = [normalize(torch.randn(size, generator=generator), dim=-1) for _ in range(2)]
        values = (*(twins(one, two, sites, step) for step in (0, 1, len(sites) - 1)), (noise[0] @ noise[1].T).amax(1).mean())
        lines.append(f"| {condition} | " + " | ".join(f"{v:.2f}" for v in values) + " |")
    return lines


HEAD = """# One dictionary for all layers, or one for each

Command: `{command}`.
Model {model}; sites {sites}.
All dictionaries are `topk` with k = {k}, so that every token has the same number of active latents everywhere; batch {batch},
learning rate {lr}, the same activations (24,000 tokens of the quickstart); {seeds} seeds.
Measured on {tokens} tokens of {groups} further dialogues that nothing was trained on, at the {positions} positions whose text
so far begins no training sequence, position 0 left out of the variance. Intervals: 95 % bootstrap over dialogues of the mean
over seeds; dictionaries of the last condition, the expensive one, are measured with one seed.
Cross-entropy of the unchanged model: {original:.3f} nats.

## What the numbers say

Written by hand after the run below; other runs will differ.

- A global dictionary works. At equal parameters and about equal compute (1152 latents for all six layers, against 192 for
  each, which then sees six times as many rows of its own site) it has less error in the middle (resid.9 to resid.19, by 2 to
  5 %) and more at the ends (resid.4, resid.24 and resid.29, by 2 to 5 %). Cross-entropy is kept better at the first four
  sites and equally well at the last two and with all six replaced at once.
- At equal width and equal compute (1152 latents for each layer, which sees as many rows of its site as the global one does)
  the global dictionary has 6 to 12 % less error at five of six sites and about the same at resid.4: with little training,
  layers gain from each other's rows.
- Six times the parameters and the compute buy dictionaries of one layer 12 to 22 % less error, and 0.02 to 0.08 more of the
  cross-entropy. That is what a user with the means gives up for sharing; it is the price of six times fewer latents as much
  as of sharing.
- Latents are really shared: one that is active is active again for the same token five layers on in 44 % of the cases (for
  another token 3 %), and a latent effectively lives at 3.8 of six sites. Dictionaries of one layer each find related
  directions by themselves: their decoder rows are nearer to those of the next site (cosine 0.31) than chance (0.14), if not
  as near as to another seed's at the same site (0.45); over 25 layers nothing is left.
- Small: one small model, 24,000 tokens, one learner, short training, a few dialogues to measure on, and one learning rate
  that was not tuned for each condition. Dictionaries of 192 latents have 8 % of them active. CPU seconds were taken on a
  busy machine.

"""


if __name__ == "__main__":
    main()
