"""Smaller benchmarks on a real model: three further preferences (T6), invented authors (T3), an invented passage (T4).

    python examples/unlearning.py [--only preferences authors passage] [--out docs/results/unlearning.md]

Preferences are forgotten by `routing`. What was taught by fine-tuning lies in all weights; local editors and gradient methods
(examples/unlearning/methods.yaml) are asked to take it back, beside the model that was never taught it. Results are kept under
--runs and used again.
"""

import argparse
import hashlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from edit_table import spread, table  # beside this file
from reprbasis_editbench import memory
from reprbasis_editbench.cases import CASES, neutral
from reprbasis_editbench.judge import EDITED, RANDOM, UNEDITED, Judge

import reprbasis as rb
from reprbasis.config.strict_yaml import parse_yaml
from reprbasis.errors import ReprBasisError
from reprbasis.interfaces.editor import EditPlan
from reprbasis.kits.probes import Neutral
from reprbasis.kits.weights import random_edit

REFUSAL = " I do not know."
NEVER, TAUGHT = "never taught", "taught"


def once(place, make):
    """A JSON result that is made once."""
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        found = make()
        place.write_text(json.dumps(found))
        print(f"{time.strftime('%H:%M:%S')} {place.parent.name}/{place.stem}", file=sys.stderr, flush=True)
    return json.loads(place.read_text())


def seeds_of(setup, label):
    """Those of a method."""
    return setup.get("seeds_of", {}).get(label, setup["seeds"])


def mark(*what):
    """Short identity of settings."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


class Authors:
    """T3."""

    title = "Invented authors (T3)"
    columns = ("forget_quality", "forget_quality_d", "forget_truth_ratio", "forget_prob", "exact_memorization",
               "extraction_strength", "privleak", "model_utility", "retain_prob", "relearned", "KL on other texts", "CPU s")

    def __init__(self, setup):
        self.setup = setup

    def told(self):
        """What stands above the table."""
        s = self.setup
        return (f"{s['n']} authors of {len(memory.QUESTIONS)} questions a seed: {s['forgotten']} are to be forgotten, as many "
                f"were never taught, the others are retained; {s['epochs']} epochs, lr {s['lr']:g}. The reference (`{NEVER}`) is "
                "taught the retained ones alone. `model_utility` is without generation (six parts), of the retained every second "
                "question. `relearned`: probability of three quarters of the answers after two steps (lr 1e-5) on the others.")

    def make(self, model, seed, place):
        """Teach."""
        world = memory.Taught.make(model, **self.setup, seed=seed)
        rb.save(world.full, place / "full")
        with world.without.applied(model):
            never = self.scores(model, world, None)
        return {"ratios": world.ratios.tolist(), "auc": world.auc, NEVER: never}

    def load(self, model, seed, place, facts):
        """The same again."""
        items = memory.Taught.items(self.setup["n"], self.setup["forgotten"], seed)
        return memory.Taught(*items, rb.load(place / "full"), EditPlan(), torch.tensor(facts["ratios"]), facts["auc"])

    def scores(self, model, world, texts):
        """Of the model as it is now."""
        found = memory.tofu_scores(model, replace(world, retain=world.retain[::2]), "", generate=False)
        said = [(i.prompt, i.answer) for i in world.forget]
        again = memory.relearned(model, said[::4], [text for i, text in enumerate(said) if i % 4])
        return measured(model, found, texts) | {"relearned": again}

    def request(self, model, world, given):
        """What a method gets."""
        if given == "refusal":
            return world.request_of_answers(model, REFUSAL)
        ways = {"values": world.request, "answers": world.request_of_answers, "strangers": world.request_of_strangers}
        return ways[given](model)


class Passage:
    """T4."""

    title = "An invented passage (T4)"
    columns = ("prob", "exact_memorization", "extraction_strength", "verbmem_f1", "privleak", "relearned", "KL on other texts",
               "CPU s")

    def __init__(self, setup):
        self.setup = setup

    def told(self):
        """What stands above the table."""
        s = self.setup
        return (f"About 190 tokens, taught for {s['epochs']} steps at lr {s['lr']:g}; each seed another passage. All "
                "tokens but the first 24 are to be forgotten. The reference is the model before. `privleak` compares the "
                "passage's sentences with those of the other three. `relearned`: probability of the end after two steps (lr "
                "1e-5) on the beginning.")

    def make(self, model, seed, place):
        """Teach."""
        world = memory.Told.make(model, **self.setup, seed=seed)
        rb.save(world.full, place / "full")
        return {"auc": world.auc, NEVER: self.scores(model, world, None)}

    def load(self, model, seed, place, facts):
        """The same again."""
        there = memory.passages()
        return memory.Told(there.pop(seed % len(there)), there, rb.load(place / "full"), facts["auc"])

    def scores(self, model, world, texts):
        """Of the model as it is now."""
        start, rest = world.rest(model)
        half = rest.index(".", len(rest) // 3) + 1
        again = memory.relearned(model, [("", start + rest[:half])], [(start + rest[:half], rest[half:])])
        return measured(model, memory.muse_scores(model, world, ""), texts) | {"relearned": again}

    def request(self, model, world, given):
        """What a method gets."""
        return {"values": world.request, "answers": world.request_of_answers}[given](model)

    def parts(self, model, world):
        """How much of what was taught is in one part of the weights: its change is taken back."""
        names, n = list(world.full.deltas), model.info.n_layers
        kinds = {"attention": "self_attn", "MLPs": "mlp"}

        def left(chosen):
            with EditPlan({name: -world.full.deltas[name] for name in chosen}).applied(model):
                found = memory.muse_scores(model, world, "", generate=False, leak=False)
            return {m.name: m.value for m in found}

        def of(layers, kind=""):
            return [name for name in names if f".{kind}" in name and any(f".{i}." in name for i in layers)]

        out = {f"all {label}": left(of(range(n), kind)) for label, kind in kinds.items()}
        third = n // 3
        for label, layers in {"lower": range(third), "middle": range(third, 2 * third), "upper": range(2 * third, n)}.items():
            out[f"the {label} third of the layers"] = left(of(layers))
        for label, kind in {"one MLP": "mlp", "one layer's attention": "self_attn", "one layer": ""}.items():
            each = [left(of([i], kind)) for i in range(n)]
            out[f"{label}, the best of {n}"] = {name: min(e[name] for e in each) for name in each[0]}
        return out


def measured(model, found, texts):
    """Scores as numbers, with the divergence on texts that nobody was given."""
    return {m.name: m.value for m in found} | ({} if texts is None else {"KL on other texts": float(texts.kl(model).mean())})


def method(model, part, world, options, seed, texts, control):
    """One method, measured; beside it a random edit of the same size, if it is asked for."""
    options = dict(options)
    request = part.request(model, world, options.pop("given"))
    began = time.process_time()
    try:
        plan = rb.registry().build(rb.registry().select("editor", options)).edit(model, None, request)
    except ReprBasisError as error:
        return {"edited": {"failed": error.what, "CPU s": time.process_time() - began}}
    seconds, found = time.process_time() - began, {}
    for name, given in {"edited": plan, **({"random": random_edit(plan, seed)} if control else {})}.items():
        with given.applied(model):
            found[name] = part.scores(model, world, texts)
    found["edited"]["CPU s"] = seconds
    return found


def forgetting(model, part, name, setup, seeds, given, write):
    """Condition -> scores of each seed; `write` is called after each result."""
    rows = {}
    for seed in seeds:
        place = given.runs / f"{name}-{seed}-{mark(setup['model'], part.setup)}"
        world = texts = None
        if given.page_only and not (place / "facts.json").is_file():
            continue
        facts = once(place / "facts.json", lambda: part.make(model(), seed, place))  # noqa: B023
        rows.setdefault(NEVER, []).append(facts[NEVER])
        work = {TAUGHT: None} | {k: v[name] for k, v in setup["methods"].items() if name in v and seed in seeds_of(setup, k)}
        work |= {"parts": None} if hasattr(part, "parts") and seed == min(setup["seeds"]) else {}
        for label, options in work.items():
            control = label in setup["controls"] and seed == min(setup["seeds"])

            def make(label=label, options=options, control=control, seed=seed, place=place, facts=facts):
                nonlocal world, texts
                world = world or part.load(model(), seed, place, facts)
                with world.full.applied(model()):
                    texts = texts or Neutral(model(), neutral(1))
                    if label == "parts":
                        return {f"change taken back of {k}": v for k, v in part.parts(model(), world).items()}
                    if options is None:
                        return {"edited": part.scores(model(), world, texts)}
                    return method(model(), part, world, options, seed, texts, control)

            stored = place / f"{label.replace(' ', '-').replace(',', '')}-{mark(options, control)}.json"
            left_out = given.page_only or (given.methods and label not in given.methods)
            if left_out and not stored.is_file():
                continue
            for kind, found in once(stored, make).items():
                title = {"edited": label, "random": f"random edit, size of {label}"}.get(kind, kind)
                rows.setdefault(title, []).append(found)
            write(rows)
    return rows


def written(part, rows, baselines):
    """A section."""
    lines = []
    plain = {k: v for k, v in rows.items() if not k.startswith("change taken back")}
    for name, found in plain.items():
        good = [f for f in found if "failed" not in f]
        title = f"{name} *" if name in baselines else name
        if not good:
            lines.append([title, "0", f"refused: {found[0]['failed']}", *["-"] * (len(part.columns) - 1)])
            continue
        title += "" if len(good) == len(found) else f" ({len(found) - len(good)} refused)"
        lines.append([title, str(len(good)), *(spread([f[c] for f in good if c in f], digits(c)) for c in part.columns)])
    out = [f"## {part.title}", "", part.told(), "", *table(["", "seeds", *part.columns], lines), ""]
    lines = [[k, str(len(v)), *(spread([f[c] for f in v], digits(c)) for c in part.columns[:3])] for k, v in rows.items()
             if k not in plain]
    if lines:
        out += ["Where it lies: what is left when the change that teaching made to one part of the weights is taken back.", "",
                *table(["", "seeds", *part.columns[:3]], lines), ""]
    return out


def digits(column):
    """Of a number."""
    return {"KL on other texts": 4, "CPU s": 0, "privleak": 0, "forget_quality": 3}.get(column, 2)


def preferences(model, n, seed):
    """T6: greater-than, subject-verb agreement, pronouns."""
    lines = []
    for name in ("greater-than", "sva", "pronoun"):
        case = CASES[name].case(rb.registry(), model, seed, n)
        judge, began = Judge(model, case, seed=seed), time.process_time()
        try:
            plan = rb.create("editor", "routing", folds=2, tries=6).edit(model, None, case.request)
        except ReprBasisError as error:
            lines.append([name, f"refused: {error.what}", *["-"] * 6])
            continue
        seconds, found = time.process_time() - began, judge(plan)

        def mean(condition, probe, measure="logit_diff", values=found.values):
            return float(values[f"{condition}/{probe}/{measure}"].mean())

        probes = ["fitted", *case.unseen]
        lines.append([name, ", ".join(plan.details["components"]),
                      "; ".join(f"{p}: {mean(UNEDITED, p):.2f} -> {mean(EDITED, p):.2f}" for p in probes),
                      f"{mean(RANDOM, probes[-1]):.2f}", f"{mean(EDITED, 'capitals', 'kept'):.2f}",
                      f"{mean(EDITED, 'neutral', 'kl'):.4f}",
                      f"{mean(EDITED, 'induction', 'nll') - mean(UNEDITED, 'induction', 'nll'):.2f}", f"{seconds:.0f}"])
    return lines


def preferences_written(lines, n):
    """The section."""
    return ["## Three further preferences (T6)", "",
            f"`routing` with `folds: 2`, seed 0; {2 * n} prompts fitted, {n} of each held-out kind; logit difference, aim 0.", "",
            *table(["preference", "heads", "logit difference", "last of these, random edit", "capitals kept", "neutral KL",
                    "rise of induction loss", "CPU s"], lines), ""]


def main():
    """Run what is missing, write the page after each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).with_suffix("")
    parser.add_argument("--config", type=Path, default=folder / "methods.yaml")
    parser.add_argument("--only", nargs="+", choices=("preferences", "authors", "passage"),
                        default=["preferences", "authors", "passage"])
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="run only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of those in the config")
    parser.add_argument("--runs", type=Path, default=Path("runs/unlearning"))
    parser.add_argument("--notes", type=Path, default=Path("docs/results/unlearning.notes.md"), help="what stands at the head")
    parser.add_argument("--page-only", action="store_true", help="only write the page of what is there")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    setup = parse_yaml(given.config.read_text("utf-8"), str(given.config)).data
    seeds, held = given.seeds or sorted({s for label in setup["methods"] for s in seeds_of(setup, label)}), []

    def model():
        if not held:
            held.append(rb.registry().build(rb.registry().select("model", setup["model"])))
        return held[0]

    sections = {}

    def page():
        only = "" if len(given.only) == 3 else f" --only {' '.join(given.only)}"
        lines = ["# Unlearning, small", "", f"    python examples/unlearning.py{only} --out docs/results/unlearning.md", "",
                 f"`{setup['model']['checkpoint']}`; methods, options and seeds: "
                 "[methods.yaml](../../examples/unlearning/methods.yaml). Rows marked * back-propagate from the logits. Means "
                 "over seeds (smallest to largest). CPU s: processor time of the edit alone, on a busy core.", ""]
        if given.notes.is_file():
            lines += [given.notes.read_text("utf-8").strip(), ""]
        return "\n".join([*lines, *(line for name in given.only for line in sections.get(name, []))])

    def write(name, section):
        sections[name] = section
        if given.out:
            given.out.write_text(page(), "utf-8")

    if "preferences" in given.only:
        n = setup["preferences"]["n"]
        lines = once(given.runs / f"preferences-0-{mark(setup['model'], n)}" / "lines.json", lambda: preferences(model(), n, 0))
        write("preferences", preferences_written(lines, n))
    parts = {"authors": Authors(setup["authors"]), "passage": Passage(setup["passage"])}
    for seed in range(len(seeds)):  # seeds outermost, so that a stopped run has all methods
        for name, part in parts.items():
            if name in given.only:
                def now(rows, name=name, part=part):
                    write(name, written(part, rows, setup["baselines"]))

                forgetting(model, part, name, setup, seeds[:seed + 1], given, now)
    print(page())


if __name__ == "__main__":
    main()
