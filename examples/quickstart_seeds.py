"""Does the quickstart hold for other seeds? Trains its dictionary again from other seeds and measures each on further text.

python examples/quickstart_seeds.py ACTIVATIONS FURTHER [TOKENS]

ACTIVATIONS and FURTHER are the folders of the steps `acts` and `further` of `reprbasis run examples/quickstart_results.yaml`
(`reprbasis show` lists them). Writes docs/results/quickstart_seeds.md.
"""

import datetime
import statistics
import sys
from pathlib import Path

import reprbasis as rb
from reprbasis.interfaces.evaluator import EvaluationInputs

SEEDS = (1, 2, 3)
OUT = Path("docs/results/quickstart_seeds.md")


def row(found, seed):
    """One line of the table."""
    of = lambda name, condition, family=None: [  # noqa: E731
        m for m in found.measurements if m.name == name and m.condition == condition and m.site
        and not m.site.startswith("all") and (family is None or m.site.split(".")[0] == family)]
    l0 = [m.value for m in of("l0", "global")]
    cells = [str(seed), f"{statistics.mean(l0):.0f}", f"{max(l0):.0f}"]
    cells += [" / ".join(f"{statistics.median(m.value for m in of('ev', c, family)):.2f}"
                         for c in ("global", "untrained", "random"))
              for family in ("resid", "attn_out", "mlp_out")]
    for name, condition in (("lead_ev", "untrained"), ("lead_ev", "random"), ("lead_ce", "mean"), ("lead_ce", "untrained"),
                            ("lead_kl", "untrained")):
        leads = of(name, condition)
        least = min(leads, key=lambda m: m.value)
        cells.append(f"{sum(m.value > 0 for m in leads)} ({sum(m.low > 0 for m in leads)}) of {len(leads)}; "
                     f"{least.value:.2g} at {least.site}")
    return "| " + " | ".join(cells) + " |"


def main(activations, further, tokens=2500):
    """Train, measure, write."""
    acts, test = rb.load(activations), rb.load(further)
    model = rb.create("model", "llama", checkpoint="smollm2-135m-instruct")
    evaluator = rb.create("evaluator", "reconstruction", tokens=tokens, sequence_tokens=160, together="resid.9::10")
    rows, note = [], ""
    for seed in SEEDS:
        learner = rb.create("learner", "jumprelu", width=4608, target_l0=38)
        basis = rb.fit(learner, acts, rows=4_000_000, lr=1e-3, seed=seed)
        found = evaluator.evaluate(EvaluationInputs(model, basis, acts, test, seed=seed))
        rows.append(row(found, seed))
        note = found.notes[0]
        print(rows[-1], flush=True)
    head = ["seed", "L0 mean", "L0 most", "EV resid", "EV attn_out", "EV mlp_out", "EV > untrained", "EV > random", "CE < mean",
            "CE < untrained", "KL < untrained"]
    OUT.write_text(f"""# The quickstart's dictionary from other seeds

`python examples/quickstart_seeds.py ACTIVATIONS FURTHER {tokens}`, {datetime.date.today()}; model smollm2-135m-instruct (CPU,
float32); one global JumpReLU dictionary of 4608 latents over 92 sites, 4,000,000 rows, as in `examples/quickstart.yaml`. {note}

Explained variance: median over the sites of a family, the dictionary / untrained / random directions of equal L0. Leads: sites
where the dictionary is better than the control (in brackets: where the 95 % interval of the paired difference lies above 0), and
the least lead (share of variance, or nats).

| {" | ".join(head)} |
|{"---|" * len(head)}
""" + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
