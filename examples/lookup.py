"""Case study: does a lookup circuit go by repetition, and can prompts be built that mislead it?

    reprbasis run examples/lookup.yaml
    python examples/lookup.py runs/lookup --out docs/results/lookup.md

1. Circuits of several prices for "a key of the dictionary gives its value, a missing one Traceback"; the smallest one with
   faithfulness >= 0.9 on held-out prompts is studied.
2. Its latents at the queried name are tested for "this name was seen before": AUROC of present against absent keys, with the
   query held fixed and with the dictionary held fixed, and on two probes that are no code.
3. Those latents are set to their mean of the other kind of prompt; the same for as many other latents, as a control.
4. Prompts on which a repeated name misleads (families A1 to B2), each beside the same prompt with a third name.
"""

import argparse
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from pathlib import Path

import torch
from torch import Tensor

import reprbasis as rb
from reprbasis.kits.circuits import Runner, fill_of
from reprbasis.kits.intervals import mean, ratio
from reprbasis.kits.survey import spearman
from reprbasis.pipeline.run import read_record
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.batches import best_of
from reprbasis.sites import Site

COSTS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
FAMILIES = {
    "A1": "a value of the dictionary", "A2": "in a comment", "A3": "key of another dictionary", "A4": "a variable",
    "A5": "a key, deleted before the query", "A6": "in a string that is printed", "B1": "a key, in two pieces (Python finds "
                                                                                        "it)",
    "B2": "a key, but a number asked for as a string"}
PLACES = {"query": "queried name", "end": "last token, where the answer is given"}
SAYS = """## What the numbers say

Written by hand after the run below; other runs will differ.

- No latent says "seen before". All that pass do the opposite: they are on, at the last token, where the key is missing, and
  about off where it is there. They do not react to repeated words or names outside code (AUROC 0.5), so they are about this
  lookup, not about repetition. At the queried name itself nothing tells the two apart, and the circuit does not stand there.
- Setting them to what they are on the other kind of prompt moves the answer by 0.10 of the gap towards the digit and 0.28 towards
  `Traceback`, several times what as many other latents do, and hardly ever turns it over. They take part; they do not
  decide alone. By the measure of half the gap, which the published case would ask for, the intervention is not reproduced.
- What misleads is a second pair of key and digit, not the name: `{'Oliver': 5}` in another dictionary (A3) or a deleted key (A5)
  fools the model nearly always, its control hardly ever. The name as a value, in a comment, as a variable or in a printed string
  does not, although A1 and A2 quieten the "missing" latents by a third to a half.
- The circuit errs where the model errs (A3, A5, B1) and not elsewhere, although it was found on neither. How far the "missing"
  latents are quietened goes with the errors over the six families of A (rank correlation 0.85; six points).
- B1 is missed always: a name in two pieces repeats no token. In B2 the model is right, as numbers and strings differ in tokens.
- Not small: 0.92 of the effect needs 347 nodes, and the error nodes among them are needed; this dictionary loses much.
- One model of two million parameters, one dictionary, one seed. The published case is on a model 4,000 times as large.
"""
CLEAR, QUIET, DRAWS, SHOWN = 0.9, 0.1, 20, 16


@dataclass(frozen=True)
class Shift:
    """An edit: some latents take given values at one position of every prompt; everything else stays.

    Args:
        latents: [k]; values: [k]; where: [B] position.
    """

    site: Site
    basis: Basis = field(repr=False)
    latents: Tensor
    values: Tensor
    where: Tensor

    def __call__(self, x, batch):
        rows = torch.arange(len(x))
        here = x[rows, self.where]
        change = self.values - self.basis.encode(self.site, here)[:, self.latents]
        moved = change @ self.basis.directions(self.site)[self.latents]
        x = x.clone()
        x[rows, self.where] = here + moved.to(x.dtype)
        return x


def wilson(hits, n):
    """Share and its 95 % interval (Wilson)."""
    if not n:
        return math.nan, math.nan, math.nan
    p, z = hits / n, 1.96
    middle, half = (p + z * z / 2 / n) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    return p, max(0.0, middle - half), min(1.0, middle + half)


def auroc(high, low):
    """[n, K], [m, K] -> [K] chance that a value of the first is above one of the second; ties count half."""
    return torch.stack([((a > low).double() + 0.5 * (a == low).double()).mean(0) for a in high]).mean(0)


def position(item, role):
    """[B] last token of a role."""
    return item.roles[role][:, -1]


def read(model, basis, batches, role, side):
    """Site -> [N, K] latents at a role, on the clean or the corrupted prompts."""
    out = {s: [] for s in basis.sites}
    for item in batches:
        z = basis.states(model.forward(getattr(item, side), capture=basis.sites, logits="none"))
        for s in basis.sites:
            out[s].append(z[s][0][torch.arange(len(item.clean.ids)), position(item, role)])
    return {s: torch.cat(v) for s, v in out.items()}


def is_present(batches):
    """[N] bool: whether the clean prompt's key is in the dictionary."""
    cases = [batches.pairs[int(i)].meta["case"] for item in batches for i in item.clean.sequences[:, -1]]
    return torch.tensor([c == "present" for c in cases])


def present_absent(model, basis, batches, role):
    """`read` of the prompts whose key is there, and of those where it is not, from pairs in both directions."""
    clean, corrupt = (read(model, basis, batches, role, side) for side in ("clean", "corrupt"))
    here = is_present(batches)
    return ({s: torch.where(here[:, None], clean[s], corrupt[s]) for s in clean},
            {s: torch.where(here[:, None], corrupt[s], clean[s]) for s in clean})


def pattern(item):
    """The layout of a batch: at each position the slot that stands there, else the token."""
    names = {int(p): role for role, where in item.roles.items() for p in where[0] if role != "end"}
    return [names.get(i, int(t)) for i, t in enumerate(item.clean.ids[0])]


def by_token(batches, like):
    """The same batches with a role for every token of the layout `like`; tokens that it does not have get none.

    So one mask serves prompts with a line more: tokens are matched by slot and text.
    """
    out = []
    for item in batches:
        here = pattern(item)
        roles = {}
        for block in SequenceMatcher(None, like, here, autojunk=False).get_matching_blocks():
            roles |= {f"t{block.a + i}": torch.full((len(item.clean.ids), 1), block.b + i) for i in range(block.size)}
        absent = torch.full((len(item.clean.ids), 1), -1)
        out.append(replace(item, roles={f"t{i}": roles.get(f"t{i}", absent) for i in range(len(like))}))
    return out


def margins(model, batches, edits=lambda item: ()):
    """[N] best logit among the answers minus best among the wrong ones, after the clean prompts."""
    values = []
    for item in batches:
        logits = model.forward(item.clean, logits="last", edits=list(edits(item))).logits[:, 0].float()
        values.append(best_of(logits, item.targets.answer) - best_of(logits, item.targets.wrong))
    return torch.cat(values)


def shifted(basis, chosen, values, role):
    """Edits that put latents (site, k) to values, for `margins`."""
    def edits(item):
        for site in basis.sites:
            if mine := [k for s, k in chosen if s == site]:
                yield Shift(site, basis, torch.tensor(mine), torch.tensor([values[site, k] for k in mine]), position(item, role))
    return edits


def wrong(values):
    """Share of negative margins with its interval."""
    return wilson(int((values < 0).sum()), len(values))


def interval(values, seed=0):
    """Mean with a 95 % bootstrap interval over prompts, as text."""
    found = mean(values.double(), torch.arange(len(values)), seed=seed)
    return f"{found.value:.2f}" if found.low is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


@dataclass(frozen=True)
class Watched:
    """Latents (site, k) at one role: those of the circuit that pass, all that pass, all of the circuit; means of each."""

    role: str
    ours: list
    every: list
    circuit: list
    mean: dict

    def scaled(self, s, k, z):
        """[N] activation of a latent, 0 as where keys are absent and 1 as where they are present."""
        low, high = self.mean["absent"][s, k], self.mean["present"][s, k]
        return (z[s][:, k] - low) / (high - low)


class Study:
    """Everything that is measured, and the lines of the page."""

    def __init__(self, model, basis, n, seed, kept):
        self.model, self.basis, self.n, self.seed, self.kept = model, basis, n, seed, kept
        self.metric = rb.create("metric", "logit-diff")
        self.lines = []

    def batches(self, split="test", keep="choice", n=None, task="dict-key", **options):
        made = rb.create("task", task, **({"quotes": "single"} if task == "dict-key" else {}), **options)
        return rb.batches(self.model, made, split=split, n=n or self.n, seed=self.seed, keep=keep)

    def say(self, *lines):
        self.lines += lines

    def keep(self, part):
        """Write the lines of a part beside the run."""
        (self.kept / f"{part}.md").write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        self.lines = []

    def part(self, part, families):
        """One part; what later ones need is left in the study's folder."""
        place = self.kept / "watched.json"
        if part == 1:
            circuit = self.circuit()
            rb.save(circuit, self.kept / "circuit", overwrite=(self.kept / "circuit").exists())
            return
        circuit = rb.load(self.kept / "circuit")
        self.layout = circuit.details["layout"]
        if part == 2:
            self.opening()
            place.write_text(json.dumps([packed(self.duplicates(circuit, role)) for role in PLACES]), encoding="utf-8")
            return
        watched = [unpacked(raw) for raw in json.loads(place.read_text("utf-8"))]
        if part == 3:
            self.intervene(controls(watched, self.seed))
        else:
            self.adversarial(circuit, watched, families)

    # -- 1 -------------------------------------------------------------------------------------------------------------

    def circuit(self):
        """The circuits, how they fare, and the one that is studied."""
        train, test = self.batches("train"), self.batches("test")
        self.layout = pattern(train[0])
        finder = rb.create("finder", "mask", index="role", costs=COSTS, lr=0.05, repair=0, rows=40)
        family = finder.family(self.model, self.basis, by_token(train, self.layout), self.metric)
        family = [c for c in family if c.size()]
        runner = Runner(self.model, self.basis, family[0].setup, by_token(test, self.layout), self.metric,
                        fill=fill_of(family[0]), latents="all")
        masks = runner.dense(family)
        bare = {s: torch.cat([m[..., :-1], torch.zeros_like(m[..., -1:])], -1) for s, m in masks.items()}
        ends = [runner.full(latents=on, errors=False) for on in (True, False)]
        value = runner.values({s: torch.cat([masks[s], bare[s], *(e[s] for e in ends)]) for s in masks})
        *value, alone, empty = value
        group = torch.arange(test.n)

        def share(x):
            found = ratio(x - empty, runner.model_values - empty, group)
            return found.value, f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"

        self.say("## 1. The circuit", "", f"Found on {train.n} prompts, judged on {test.n} others, of which the model answers "
                 f"{test.keep_rate():.0%} rightly on both sides (only those are used). A node is a latent or a reconstruction "
                 "error of one site at one token; all others take their mean over corrupted prompts. All latents without any "
                 f"error: faithfulness {share(alone)[1]}.", "",
                 "| nodes | latents | errors | faithfulness | without its errors |", "|---|---|---|---|---|")
        chosen = None
        for i in sorted(range(len(family)), key=lambda i: family[i].size()):
            size, wrong = family[i].size(), family[i].stats()["errors"]
            self.say(f"| {size} | {size - wrong} | {wrong} | {share(value[i])[1]} | {share(value[len(family) + i])[1]} |")
            if chosen is None and share(value[i])[0] >= 0.9:
                chosen = family[i]
        chosen = chosen or family[max(range(len(family)), key=lambda i: share(value[i])[0])]
        told = Counter(self.at(chosen, row) for _, row, _ in chosen.nodes())
        self.say("", f"Studied below: the circuit of {chosen.size()} nodes. Where they stand: "
                 + ", ".join(f"{name} {count}" for name, count in told.most_common()) + ".", "")
        return replace(chosen, details={**chosen.details, "layout": self.layout})

    def at(self, circuit, row):
        """Name of the slot or the token that a row of the mask stands for."""
        what = self.layout[int(circuit.setup.roles[row][1:])]
        return what if isinstance(what, str) else f"`{self.model.tokenizer.decode([what])!r}`"

    # -- 2 -------------------------------------------------------------------------------------------------------------

    def opening(self):
        """What part 2 tests."""
        self.say(
            "## 2. Latents that see a repeated name", "",
            "A latent passes if it is on where the key is in the dictionary and about off where it is not: AUROC >= "
            f"{CLEAR} both with the same query and with the same dictionary, mean where it should be off at most {QUIET:.0%} of "
            f"the mean where it is on; or the other way round, on where the key is missing (AUROC <= {1 - CLEAR:.1f}). "
            f"{self.n} pairs in each arm. The last two columns are AUROCs on prompts that are no code: `words`, a word "
            "said again against a new one (task induction); `names`, a second mention against a third name (task ioi).", "")

    def duplicates(self, circuit, role):
        """Latents at a role that tell present keys from absent ones: a `Watched`."""
        basis = self.basis
        row = len(self.layout) - 1 if role == "end" else self.layout.index(role)
        mine = [(s, k) for s, r, k in circuit.nodes() if r == row and k < basis.d_dict]
        arms = {c: present_absent(self.model, basis, self.batches(change=c), role) for c in ("key", "query")}
        score = {c: {s: auroc(p[s], a[s]) for s in basis.sites} for c, (p, a) in arms.items()}
        both = [{s: torch.cat([arm[i][s] for arm in arms.values()]).mean(0) for s in basis.sites} for i in (0, 1)]
        present, absent = ({(s, k): float(v[s][k]) for s in basis.sites for k in range(basis.d_dict)} for v in both)

        def passes(n):
            d = [float(t[n[0]][n[1]]) for t in score.values()]
            if min(d) >= CLEAR:
                return absent[n] <= QUIET * present[n]
            return max(d) <= 1 - CLEAR and present[n] <= QUIET * absent[n]

        every = [n for n in present if passes(n)]
        found = Watched(role, [n for n in mine if n in every], every, mine, {"present": present, "absent": absent})
        seen = {}
        for task, at in (("induction", {"query": "query", "end": "end"}), ("ioi", {"query": "s2", "end": "end"})):
            made = self.batches(task=task, keep="all")
            p, a = (read(self.model, basis, made, at[role], side) for side in ("clean", "corrupt"))
            seen[task] = {s: auroc(p[s], a[s]) for s in basis.sites}
        self.say(f"### At the {PLACES[role]}", "",
                 f"{len(mine)} latents of the circuit stand here; {len(found.ours)} of them pass. Of all {len(present)} "
                 f"latents of "
                 f"the {len(basis.sites)} sites {len(every)} pass.", "",
                 "| latent | in the circuit | AUROC, same query | AUROC, same dictionary | mean present | mean absent | words "
                 "| names |",
                 "|---|---|---|---|---|---|---|---|")
        rows = sorted(every, key=lambda n: (n not in mine, -present[n], -absent[n]))
        for s, k in rows[:SHOWN]:
            cells = [float(t[s][k]) for t in (score["key"], score["query"])] + [present[s, k], absent[s, k]]
            cells += [float(seen[t][s][k]) for t in ("induction", "ioi")]
            self.say(f"| {s} / {k} | {'yes' if (s, k) in mine else 'no'} | {' | '.join(f'{c:.2f}' for c in cells)} |")
        self.say("", *([f"({len(rows) - SHOWN} more pass.)", ""] if len(rows) > SHOWN else []))
        return found

    # -- 3 -------------------------------------------------------------------------------------------------------------

    def intervene(self, sets):
        """Set latents to their mean of the other kind of prompt; `sets`: name -> (`Watched`, draws of latents)."""
        pairs = self.batches()
        present = is_present(pairs)
        sign = torch.where(present, 1.0, -1.0)  # the right answer is a digit, or Traceback
        digit = margins(self.model, pairs) * sign
        gap = float(digit[present].mean() - digit[~present].mean())
        self.say("## 3. Setting them", "", f"Logit of the digit minus logit of `Traceback`: {interval(digit[present])} where "
                                           f"the key is "
                 f"present, {interval(digit[~present])} where it is absent; the gap is {gap:.2f}. In the whole model, latents "
                 f"at one "
                 "token are set to their mean over the other kind of prompt. Shift: share of the gap towards that kind. "
                 "Turned: share "
                 "of prompts whose preference turns over. Controls: mean over random draws of as many latents at the same "
                 "token.", "",
                 "| latents | n | absent -> present: shift | turned | present -> absent: shift | turned |",
                 "|---|---|---|---|---|---|")
        for name, (watched, draws) in sets.items():
            cells = []
            for kind, other, towards in ((~present, "present", 1.0), (present, "absent", -1.0)):
                shifts, turns = [], []
                for chosen in draws:
                    now = margins(self.model, pairs, shifted(self.basis, chosen, watched.mean[other], watched.role)) * sign
                    shifts.append(towards * (now - digit)[kind] / gap)
                    turns.append(((now * digit)[kind] < 0).double())
                cells += [interval(torch.stack(shifts).mean(0)), f"{float(torch.stack(turns).mean()):.2f}"]
            times = f" x {len(draws)} draws" if len(draws) > 1 else ""
            self.say(f"| {name} | {len(draws[0])}{times} | {' | '.join(cells)} |")
        self.say("")

    # -- 4 -------------------------------------------------------------------------------------------------------------

    def adversarial(self, circuit, places, families):
        """Families of misleading prompts, each beside its control; `places`: what to watch."""
        self.say("## 4. Prompts that mislead", "",
                 "The missing name stands somewhere else (B1, B2: see the table); in the control a third name stands there. "
                 "Errors: share "
                 "of prompts where the wrong answer is the likelier of the two kinds (a digit where Python raises; "
                 "`Traceback` in B1), "
                 "with 95 % intervals (Wilson). Circuit: all nodes outside of it ablated; tokens that the prompts of part 1 "
                 "do not have "
                 "are left as they are. Basis: every token of part 1 is replaced by what its latents say, without errors. "
                 "Looks "
                 "present: activation of all latents that pass, 0 as where a key is absent, 1 as where it is present, minus "
                 "the same in "
                 "the control; mean over latents and prompts.", "",
                 "| family | the name asked for stands | n | errors, model | control | errors, circuit | control | errors, "
                 "basis | "
                 + " | ".join(f"looks present, {w.role}" for w in places) + " |", "|" + "---|" * (8 + len(places)))
        rates, looks = {}, {w.role: [] for w in places}
        for family, where in FAMILIES.items():
            path = self.kept / f"{family}.json"
            if family in families:
                path.write_text(json.dumps(self.family(circuit, places, family, where)), encoding="utf-8")
            if path.is_file():
                found = json.loads(path.read_text("utf-8"))
                self.say(found["row"])
                rates[family] = found["rates"]
                for role, value in found["looks"].items():
                    looks[role].append(value)
        fooled = [f for f, (a, b) in rates.items() if f[0] == "A" and a >= 0.5 and b <= 0.1]
        missed, some = [a for a, _ in rates.values()], [f[0] == "A" for f in rates]
        self.say("", f"Families A where at least half of the answers are wrong and at most a tenth of those to the control: "
                 f"{', '.join(fooled) or 'none'}.", "")
        for role, seen in looks.items():
            ours = [[x for x, a in zip(values, some, strict=True) if a] for values in (seen, missed)]
            self.say(f"Rank correlation of errors and `looks present, {role}`: {spearman(seen, missed):.2f} over the "
                     f"{len(missed)} families, {spearman(*ours):.2f} over those of A.", "")

    def family(self, circuit, places, family, where):
        """One row of the table, the error rates, and how present the name looks."""
        pairs = self.batches(keep="all", family=family)
        other = [replace(item, clean=item.corrupt, corrupt=item.clean) for item in pairs]
        cells, told, seen = [], [], {w.role: [] for w in places}
        for made, sign in ((pairs, 1.0), (other, -1.0 if family == "B1" else 1.0)):  # in B1's control Python raises
            values = [sign * v for v in self.ways(circuit, made)]
            cells.append([wrong(v) for v in values])
            told.append([f"{p:.2f} [{low:.2f}, {high:.2f}]" for p, low, high in cells[-1]])
            for w in places:
                z = read(self.model, self.basis, made, w.role, "clean")
                scaled = [w.scaled(s, k, z) for s, k in w.every]
                seen[w.role].append(torch.stack(scaled).mean(0) if scaled else torch.zeros(len(values[0])))
        n = sum(len(item.clean.ids) for item in pairs)
        row = (f"| {family} | {where} | {n} | {told[0][0]} | {told[1][0]} | {told[0][1]} | {told[1][1]} | {told[0][2]} | "
               + " | ".join(interval(seen[w.role][0] - seen[w.role][1]) for w in places) + " |")
        return {"row": row, "rates": [cells[0][0][0], cells[1][0][0]],
                "looks": {w.role: float(seen[w.role][0].mean() - seen[w.role][1].mean()) for w in places}}

    def ways(self, circuit, made):
        """[3, N] margins of the model, the circuit, and the basis without errors."""
        runner = Runner(self.model, self.basis, circuit.setup, by_token(made, self.layout), self.metric, fill=fill_of(circuit),
                        latents="all")
        some, bare = runner.dense([circuit]), runner.full(latents=True, errors=False)
        for m in (*some.values(), *bare.values()):
            m[:, -1] = 1  # tokens that the layout does not have
        values = runner.values({s: torch.cat([some[s], bare[s]]) for s in some})
        return torch.stack([runner.model_values, *values])


def controls(places, seed):
    """What is set in part 3: the latents that pass, and random draws of as many others."""
    generator, sets = torch.Generator().manual_seed(seed), {}
    for w in places:
        on = [n for n in w.mean["present"] if w.mean["present"][n] + w.mean["absent"][n] > 0 and n not in w.every]
        others = [n for n in w.circuit if n not in w.ours]
        for name, chosen, pool, kind in (("of the circuit that pass", w.ours, others, "others of the circuit"),
                                         ("that pass", w.every, on, "others that are on")):
            size = min(len(chosen), len(pool))
            if chosen:
                sets[f"{w.role}: {name}"] = w, [chosen]
            if size:
                drawn = [torch.randperm(len(pool), generator=generator)[:size].tolist() for _ in range(DRAWS)]
                sets[f"{w.role}: control, {kind}"] = w, [[pool[i] for i in some] for some in drawn]
    return sets


def packed(w):
    """A `Watched` as JSON values."""
    return {"role": w.role, **{k: [[str(s), i] for s, i in getattr(w, k)] for k in ("ours", "every", "circuit")},
            "mean": {k: [[str(s), i, x] for (s, i), x in v.items()] for k, v in w.mean.items()}}


def unpacked(raw):
    """Inverse of `packed`."""
    lists = [[(Site.parse(s), i) for s, i in raw[k]] for k in ("ours", "every", "circuit")]
    return Watched(raw["role"], *lists, {k: {(Site.parse(s), i): x for s, i, x in v} for k, v in raw["mean"].items()})


def main():
    """Run the parts of the study that are asked for, and write the page from all that there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=64, help="pairs of prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=int, nargs="*", default=[1, 2, 3, 4],
                        help="each goes on from what the earlier ones left in RUN/study")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), help="which are measured anew in part 4")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    record, kept = read_record(args.run), args.run / "study"
    kept.mkdir(exist_ok=True)
    model = rb.create("model", record.model["use"], checkpoint=record.model["checkpoint"])
    basis = rb.load(next(s.folder for s in record.steps if s.name == "basis"))
    study = Study(model, basis, args.n, args.seed, kept)
    for part in args.parts:
        study.part(part, args.families)
        study.keep(part)
    head = ["# A lookup circuit, and prompts that mislead it", "",
            f"Commands: `reprbasis run examples/lookup.yaml`, then `python examples/lookup.py runs/{record.name} --n {args.n}` "
            f"(seed {args.seed}).", "",
            f"Model {record.model['checkpoint']}; task `dict-key` with single quotes; basis: {basis.d_dict} latents shared by "
            f"{', '.join(map(str, basis.sites))}. Intervals: 95 %, over prompts.", ""]
    found = [path.read_text("utf-8") for path in sorted(kept.glob("[1-4].md"))]
    text = "\n".join([*head, SAYS, *found]).rstrip() + "\n"
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
