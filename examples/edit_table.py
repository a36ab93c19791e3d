"""Every editor and every baseline on two benchmarks: forgetting indirect objects (ioi), and capitals that are to be others.

    python examples/edit_table.py [--basis DIR] [--config examples/edit_table/editors.yaml] [--out docs/results/edits.md]

Results are kept under --runs and used again. Editors that need a basis get the one of --basis (`reprbasis run
examples/quickstart.yaml` makes it).
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections import Counter
from functools import cached_property
from pathlib import Path

import torch
from reprbasis_editbench.cases import CASES, Facts, known_facts, neutral
from reprbasis_editbench.judge import EDITED, RANDOM, UNEDITED, Judge, Stress

import reprbasis as rb
from reprbasis.config.strict_yaml import parse_yaml
from reprbasis.errors import ReprBasisError
from reprbasis.interfaces.evaluator import Findings
from reprbasis.kits.intervals import mean
from reprbasis.kits.probes import Neutral, rows

FAR = "unseen neighbours"


class World:
    """The model, and cases with their judges, each made once."""

    def __init__(self, setup, basis):
        self.setup, self.model = setup, rb.registry().build(rb.registry().select("model", setup["model"]))
        self.basis, self.judges = rb.load(basis) if basis else None, {}

    def judge(self, name, seed, index, n):
        """The judge of a case."""
        if (name, seed, index, n) not in self.judges:
            maker = Facts(self.known) if name == "capitals" else CASES[name]
            case = maker.case(rb.registry(), self.model, seed, n, index)
            self.judges[name, seed, index, n] = Judge(self.model, case, seed=seed, texts=self.texts)
        return self.judges[name, seed, index, n]

    @cached_property
    def known(self):
        """The capitals that the model knows."""
        return known_facts(rb.registry(), self.model)

    @cached_property
    def texts(self):
        """The neutral texts, measured once."""
        return Neutral(self.model, neutral(1))

    def run(self, name, label, seed, index):
        """One edit, judged; the cost in processor time and in forwards over the fitted prompts."""
        options, n = self.setup["editors"][label][name], prompts(self.setup, name, label)
        judge = self.judge(name, seed, index, n)
        began = time.process_time()
        rows(self.model, judge.case.fitted)
        forward = time.process_time() - began
        editor, began = rb.registry().build(rb.registry().select("editor", options)), time.process_time()
        try:
            plan = editor.edit(self.model, self.basis, judge.case.request)
        except ReprBasisError as error:
            return {"failed": error.what, "seconds": time.process_time() - began}, None
        seconds = time.process_time() - began
        first = seed == min(seeds(self.setup, label)) and index == 0
        findings = judge(plan, stress=Stress() if first else None, control=first)
        kept = {k: v for k, v in plan.details.items() if k in ("components", "component", "layer", "layers", "locality", "heads")}
        return {"seconds": seconds, "forwards": seconds / forward, "details": kept, "case": judge.case.name,
                "prompts": judge.case.fitted.n, "keep": len(judge.case.request.keep)}, findings


def prompts(setup, name, label):
    """How many of each held-out kind."""
    benchmark = setup["benchmarks"][name]
    return benchmark.get("prompts_of", {}).get(label, benchmark["prompts"])


def seeds(setup, label):
    """Those of a row; a row of its own may have fresh ones."""
    return setup.get("seeds_of", {}).get(label, setup["seeds"])


def fingerprint(setup, name, label, seed, index):
    """Identity of a result."""
    what = [setup["model"], prompts(setup, name, label), setup["editors"][label][name], seed, index]
    return f"{name}-{label}-{seed}-{index}-" + hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def wanted(setup):
    """Every (editor, benchmark, seed, case), seeds outermost, so that a stopped run has all editors."""
    for seed in sorted({s for label in setup["editors"] for s in seeds(setup, label)}):
        for index in range(max(max(b["cases"], *b.get("more", {}).values(), 0) for b in setup["benchmarks"].values())):
            for label, per in setup["editors"].items():
                for name, benchmark in setup["benchmarks"].items():
                    cases = benchmark.get("more", {}).get(label, benchmark["cases"])
                    if name in per and index < cases and seed in seeds(setup, label):
                        yield label, name, seed, index


def results(setup, runs):
    """(benchmark, editor) -> list of (seed, facts, findings) that exist."""
    found = {}
    for label, name, seed, index in wanted(setup):
        place = runs / fingerprint(setup, name, label, seed, index)
        if (place / "facts.json").is_file():
            facts = json.loads((place / "facts.json").read_text())
            findings = rb.load(place / "findings") if (place / "findings").is_dir() else None
            found.setdefault((name, label), []).append((seed, facts, findings))
    return found


def spread(values, digits=2):
    """Mean over edits, and the smallest and largest."""
    values = [v for v in values if v is not None]
    if not values:
        return "-"
    middle = statistics.mean(values)
    return f"{middle:.{digits}f}" + (f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else "")


def value(findings, condition, probe, measure):
    """Mean of the rows of one edit."""
    key = f"{condition}/{probe}/{measure}"
    return float(findings.values[key].mean()) if findings is not None and key in findings.values else None


def share(done, condition, probe, measure, flip=False):
    """A share over the prompts of all edits, with an interval over edits."""
    parts = [f.values.get(f"{condition}/{probe}/{measure}") for _, _, f in done if f is not None]
    parts = [p for p in parts if p is not None]
    if not parts:
        return "-"
    x = torch.cat(parts)
    m = mean(1 - x if flip else x, torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(p) for p in parts])))
    return f"{m.value:.2f}" + ("" if m.low is None else f" [{m.low:.2f}, {m.high:.2f}]")


def rise(findings, condition):
    """Rise of the induction loss."""
    if findings is None:
        return None
    return value(findings, condition, "induction", "nll") - value(findings, UNEDITED, "induction", "nll")


def table(head, lines):
    """A Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *lines)]


def named(setup, label):
    """The editor's name; baselines are marked."""
    return f"{label} *" if label in setup["baselines"] else label


def ioi(setup, found, runs):
    """Tables of T1."""
    probes = ("fitted", "unseen words", "unseen wordings", "both unseen")
    lines, robust = [], []
    some = next((done for (name, _), done in found.items() if name == "ioi" and done[0][2]), None)
    if some:
        lines.append(["unedited", str(len(some)),
                      *(spread([value(f, UNEDITED, p, "logit_diff") for *_, f in some]) for p in probes),
                      "0", "0", "1.00", "-"])
    for (name, label), done in found.items():
        if name != "ioi":
            continue
        good = [f for *_, f in done if f is not None]
        if not good:
            lines.append([named(setup, label), str(len(done)), f"refused: {done[0][1]['failed']}", *["-"] * 7])
            continue
        lines.append([named(setup, label), str(len(good)),
                      *(spread([value(f, EDITED, p, "logit_diff") for f in good]) for p in probes),
                      spread([value(f, EDITED, "neutral", "kl") for f in good], 4), spread([rise(f, EDITED) for f in good]),
                      share(done, EDITED, "capitals", "kept"),
                      spread([value(f, RANDOM, "both unseen", "logit_diff") for f in good])])
        robust.append(robustness(setup, label, done, "both unseen", "logit_diff"))
    head = ["editor", "edits", *(f"logit difference, {p}" for p in probes), "neutral KL", "rise of induction loss",
            "capitals kept", "both unseen, random edit"]
    return ["## Forgetting a preference: indirect objects (T1)", "",
            "The aim is indifference: logit difference 0 on names and wordings that the editor has not seen. Mean over seeds "
            "(smallest to largest). KL in nats a token; induction loss in nats.", "", *table(head, lines), "",
            *robustness_table(robust)]


def capitals(setup, found, runs):
    """Tables of T2."""
    lines, robust = [], []
    some = next((done for (name, _), done in found.items() if name == "capitals" and done[0][2]), None)
    columns = [("fitted", "wrong_top1", False), ("paraphrases", "choice", True), ("paraphrases", "wrong_top1", False),
               ("neighbours", "kept", False), (FAR, "kept", False), (f"{FAR}, other wordings", "kept", False)]
    if some:
        lines.append(["unedited", str(len(some)), *(share(some, UNEDITED, *c) for c in columns), "0", "0", "-"])
    for (name, label), done in found.items():
        if name != "capitals":
            continue
        good = [f for *_, f in done if f is not None]
        if not good:
            lines.append([named(setup, label), str(len(done)), f"refused: {done[0][1]['failed']}", *["-"] * 8])
            continue
        lines.append([named(setup, label) + ("" if len(good) == len(done) else f" ({len(done) - len(good)} refused)"),
                      str(len(good)),
                      *(share(done, EDITED, *c) for c in columns),
                      spread([value(f, EDITED, "neutral", "kl") for f in good], 4), spread([rise(f, EDITED) for f in good]),
                      spread([value(f, RANDOM, "fitted", "wrong_top1") for f in good])])
        robust.append(robustness(setup, label, done, "paraphrases", "wrong_top1"))
    head = ["editor", "edits", "reliability (argmax)", "generality (new above old)", "generality (argmax)",
            "neighbours given kept", "unseen neighbours kept", "the same in other wordings", "neutral KL",
            "rise of induction loss", "reliability, random edit"]
    return ["## Changing a fact: capitals (T2)", "",
            "One prompt is fitted, in one wording. Paraphrases are wordings that the editor has not seen and in which the model "
            "knows the capital. Kept: the likeliest token is what it was. Shares over all prompts, with 95 % intervals over "
            "edits.", "",
            *table(head, lines), "", *robustness_table(robust)]


def robustness(setup, label, done, probe, measure):
    """A line of the second table."""
    good = [(facts, f) for _, facts, f in done if f is not None]
    first = good[0][1]
    conditions = [f"{EDITED}, int8", f"{EDITED}, int4", *(f"{EDITED}, relearned {k}" for k in Stress().relearn)]

    def single(name):
        return [next((m.value for m in f.measurements if m.name == name), None) for _, f in good]

    facts = good[0][0]
    where = facts["details"].get("components") or facts["details"].get("component") or facts["details"].get("layers")
    where = facts["details"].get("layer", where) if where is None else where
    layers = [m.value for m in first.measurements if m.name == "residue" and m.condition.startswith(f"{EDITED}:")]
    most = max(layers, key=abs) if layers else None
    where = ", ".join(map(str, where)) if isinstance(where, list | dict) else str(where or "-")
    return [named(setup, label), facts["details"].get("locality", "-"), where, f"{facts['prompts']} / {facts['keep']}",
            spread(single("relative_change"), 4),
            *(spread([value(first, c, probe, measure)]) for c in conditions), spread([most]),
            spread([f["forwards"] for f, _ in good], 0), spread([b / 1e6 for b in single("extra_bytes")], 2)]


def robustness_table(lines):
    """The second table of a benchmark."""
    head = ["editor", "locality", "components", "prompts / texts to keep", "relative change", "int8", "int4",
            *(f"relearned {k}" for k in Stress().relearn), "largest residue", "time in forwards", "MB changed"]
    return ["Is it gone or hidden, and what did it cost? Held-out prompts again (first seed) with weights rounded to 8 and 4 "
            "bits and after steps of SGD on a quarter of the fitted prompts; the largest logit difference that any layer's "
            "stream holds (logit lens); processor time of the edit in forwards over the fitted prompts.", "",
            *table(head, lines), ""]


HEAD = """# Editing and unlearning

Command: `python examples/edit_table.py{basis}` (editors and options: [editors.yaml](../../examples/edit_table/editors.yaml)).
Model {model}. Seeds {seeds}: of the prompts, names, countries and texts; {n}.
Rows marked * are baselines that back-propagate from the logits. Every editor was given the same prompts and the same texts to
keep; held-out prompts and neutral texts were in none of them.

"""


def page(setup, found, runs, given):
    """The whole page."""
    counts = ", ".join(f"{b['cases']} edit{'s' * (b['cases'] > 1)} a seed for {name}"
                       + "".join(f" ({more} of `{label}`)" for label, more in b.get("more", {}).items())
                       for name, b in setup["benchmarks"].items())
    lines = HEAD.format(basis=" --basis BASIS" if given.basis else "", model=setup["model"]["checkpoint"], n=counts,
                        seeds=", ".join(map(str, setup["seeds"])) + "".join(
                            f" ({', '.join(map(str, own))} in `{label}`)" for label, own in setup.get("seeds_of", {}).items()))
    if given.notes.is_file():
        lines += given.notes.read_text("utf-8").strip() + "\n\n"
    asked, there = Counter(), Counter()
    for label, name, seed, index in wanted(setup):
        asked[label, name] += 1
        there[label, name] += (runs / fingerprint(setup, name, label, seed, index) / "facts.json").is_file()
    fewer, never = [sum(there[key] < n for key, n in asked.items()), [f"{a} on {b}" for a, b in asked if not there[a, b]]]
    if fewer:
        lines += f"Of {len(asked)} rows {fewer} have fewer edits than asked for; the column *edits* says how many.\n"
        lines += f"Not run at all: {', '.join(never)}.\n\n" if never else "\n"
    return lines + "\n".join([*ioi(setup, found, runs), "", *capitals(setup, found, runs)]) + "\n"


def main():
    """Run what is missing, write the page after each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix("") / "editors.yaml")
    parser.add_argument("--basis", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/edit_table"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--notes", type=Path, default=Path("docs/results/edits.notes.md"), help="what stands at the head")
    parser.add_argument("--only", nargs="+", metavar="EDITOR", help="only these editors")
    parser.add_argument("--most", type=int, metavar="N", help="make so many results and stop")
    parser.add_argument("--page-only", action="store_true", help="only write the page of what is there")
    given = parser.parse_args()
    setup = parse_yaml(given.config.read_text("utf-8"), str(given.config)).data
    world, made = None, 0
    for label, name, seed, index in wanted(setup):
        place = given.runs / fingerprint(setup, name, label, seed, index)
        skip = given.page_only or made == given.most or (given.only and label not in given.only)
        if skip or (place / "facts.json").is_file():
            continue
        made += 1
        world = world or World(setup, given.basis)
        facts, findings = world.run(name, label, seed, index)
        place.mkdir(parents=True, exist_ok=True)
        if findings is not None and not (place / "findings").is_dir():
            rb.save(Findings(findings.measurements, values=findings.values), place / "findings")
        (place / "facts.json").write_text(json.dumps(facts))
        print(f"{time.strftime('%H:%M:%S')} {place.name}: {facts['seconds']:.0f} s {facts.get('failed', '')}", file=sys.stderr)
        if given.out:
            given.out.write_text(page(setup, results(setup, given.runs), given.runs, given), "utf-8")
    print(page(setup, results(setup, given.runs), given.runs, given))


if __name__ == "__main__":
    main()
