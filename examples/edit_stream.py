"""Fifty edits one after the other in one weight: recursive least squares against naive rank-one steps, on a real model.

    python examples/edit_stream.py --out docs/results/edit_stream.md

Each edit lets the model give another city as the capital of a country. Every edit is measured right after it, and every few
edits all edits so far, their paraphrases, countries that are never edited, and texts that have nothing to do with any of it.
"""

import argparse
import random
import sys
import time
from pathlib import Path

import torch
from reprbasis_editbench.cases import neutral
from reprbasis_editors.online import Stream

import reprbasis as rb
from reprbasis.interfaces.editor import EditRequest
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.model import Start
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import Example, TokenBatch
from reprbasis.kits.components import stream_before
from reprbasis.runtime.batches import last_logits

COUNTRIES = (
    "France", "Germany", "Italy", "Spain", "Japan", "China", "Russia", "England", "Greece", "Egypt", "Poland", "Austria",
    "Hungary", "Ireland", "Sweden", "Norway", "Portugal", "Turkey", "Cuba", "Peru", "Kenya", "Iraq", "Iran", "Thailand",
    "Canada", "Belgium", "Denmark", "Finland", "Ukraine", "Lebanon", "Syria", "Chile", "Scotland", "Romania", "Switzerland",
    "Venezuela", "Colombia", "Vietnam", "Indonesia", "Pakistan", "Bulgaria", "Serbia", "Croatia", "India", "Australia",
    "Brazil", "Mexico", "Argentina", "Morocco", "Ethiopia", "Jordan", "Israel", "Bolivia", "Ecuador", "Nepal", "Mongolia",
    "Nigeria", "Ghana", "Uganda", "Angola",
)
CITIES = (
    "Chicago", "Boston", "Houston", "Denver", "Miami", "Detroit", "Dallas", "Seattle", "Munich", "Barcelona", "Toronto",
    "Sydney", "Milan", "Manchester",
)
KNOWN = (
    "Jamaica", "Iceland", "Estonia", "Latvia", "Cyprus", "Malta", "Georgia", "Libya", "Sudan", "Tunisia", "Algeria", "Laos",
    "Cambodia", "Malaysia", "Singapore", "Haiti", "Panama", "Honduras", "Guatemala", "Paraguay", "Uruguay", "Yemen", "Oman",
    "Qatar",
)
"""Countries that are said to stay; none of them is edited or measured."""
WORDING, PARAPHRASE = "The capital of {} is the city of", "People who visit the capital of {} visit the city of"
TEXTS = (
    "The river rises in the hills and runs slowly through the meadows until it meets the sea.",
    "Photosynthesis turns light, water and carbon dioxide into sugar, and gives off oxygen.",
    "She opened the letter, read it twice, and put it back into the drawer without a word.",
    "To sort a list, compare two neighbours and exchange them if they stand in the wrong order.",
    "The committee will meet on Tuesday to talk about the budget for the coming year.",
    "Bake the bread in a hot oven until the crust sounds hollow when you tap it.",
    "He played the violin every evening, and the neighbours learned to like it.",
    "Interest rates fell again last month, and banks lowered what they pay on savings.",
    "A triangle with two equal sides has two equal angles.",
    "The museum is open from nine to five, and on Sundays the entrance is free.",
    "Clouds gathered over the hills, and the first drops fell before they reached the house.",
    "Most birds build their nests in spring, when there is food enough for the young.",
)


class Naive(Stream):
    """The same values with a fixed covariance: each step is exact for its own key and blind to all others."""

    def edit(self, name, keys, values):
        used = self.free @ keys.double().T
        gain = torch.linalg.solve(keys.double() @ used, used.T)
        self.weight = self.weight + (values.double() - keys.double() @ self.weight.T).T @ gain

    def check(self, name, keys):
        """Nothing is ever refused."""

    def step(self, keys):
        used = self.free @ keys.double().T
        return torch.linalg.solve(keys.double() @ used, used.T)


class Probe:
    """Prompts, and the stream before the first layer that edits change: what lies before is run once."""

    def __init__(self, model, texts, layer):
        self.batch, site = tokens(model, texts), stream_before(layer)
        self.start = Start(site, model.forward(self.batch, capture=[site], stop_at=site, logits="none")[site])

    def said(self, model):
        """[N] the token that the model gives."""
        return model.forward(self.batch, start=self.start, logits="last").logits[:, 0].argmax(-1)

    def log_probs(self, model):
        """[tokens, V] after every token but the first."""
        logits = model.forward(self.batch, start=self.start).logits
        return logits[self.batch.mask & (self.batch.positions > 0)].log_softmax(-1)


def tokens(model, texts):
    """A batch."""
    return TokenBatch.pad(model.tokenize([Example(text=t) for t in texts]), pad_id=model.pad_id)


def item_of(model, country, target):
    """The prompt; the answer is the likeliest token as it is, the wrong answer the new city; the subject is one token."""
    batch = tokens(model, [WORDING.format(country)])
    subject = (batch.ids[0] == model.tokenizer.encode(f" {country}")[0]).nonzero()[:1]
    now = last_logits(model, batch)
    now[0, target] = -torch.inf
    return ContrastBatch(batch, None, Targets(now.topk(1).indices, torch.tensor([[target]])), {"subject": subject})


def run(model, edits, others, session, every, strengths=()):
    """Rows of numbers, the seconds that each edit took, and its strength (searched, unless strengths are given)."""
    neutral, asked, again, rest = (Probe(model, texts, session.part.layer) for texts in (
        TEXTS, [WORDING.format(c) for c, _ in edits], [PARAPHRASE.format(c) for c, _ in edits],
        [WORDING.format(c) for c in others]))
    before, stays, targets = neutral.log_probs(model), rest.said(model), torch.tensor([t for _, t in edits])
    rows, seconds, found, refused = [], [], [], 0
    for count, (country, target) in enumerate(edits, 1):
        with session.plan().applied(model):
            item = item_of(model, country, target)
        start = time.perf_counter()
        if strengths:
            session.config = session.config.model_copy(update={"goal": None, "budget": 1e9})
            session.strength = strengths[count - 1]
        try:
            found.append(session.edit(item, country)["strength"])
        except rb.errors.UserError as error:
            refused += 1
            found.append(session.strength)
            print(error, file=sys.stderr)
        seconds.append(time.perf_counter() - start)
        if count % every and count != len(edits):
            continue
        plan = session.plan()
        with plan.applied(model):
            held, other = ((probe.said(model) == targets)[:count].double() for probe in (asked, again))
            rows.append({
                "edits": count,
                "reliability": float(held.mean()),
                "first ten": float(held[:10].mean()),
                "paraphrases": float(other.mean()),
                "others kept": float((rest.said(model) == stays).double().mean()),
                "neutral KL": float((before.exp() * (before - neutral.log_probs(model))).sum(-1).mean()),
                "change": max(float(d.norm() / model.parameters()[n].norm()) for n, d in plan.deltas.items()),
                "seconds": sum(seconds[-every:]) / len(seconds[-every:]), "refused": refused})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows, seconds, found


def table(rows):
    """In Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[str(v) if isinstance(v, (int, str)) else f"{v:.3g}" for v in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def experiment(model, args, seed):
    """Rows, seconds and strengths of both ways, and the number of countries that are never edited."""
    draw = random.Random(seed)
    countries = [c for c in COUNTRIES if len(model.tokenizer.encode(f" {c}")) == 1]
    draw.shuffle(countries)
    ids = [model.tokenizer.encode(f" {c}") for c in CITIES]
    edits = [(c, draw.choice([i[0] for i in ids if len(i) == 1])) for c in countries[:args.edits]]
    others = countries[args.edits:]
    keep = list(rb.create("corpus", "chat", limit=args.keep).examples(seed=seed))
    keep += neutral(0)
    keep += [Example(text=WORDING.format(name)) for name in (KNOWN if args.near else ())]
    editor = rb.create("editor", "online", component=args.component, goal=args.goal, rivals="all", strength=64.0, tries=5,
                       at=args.at, ridge=args.ridge, contexts=args.contexts, near=args.near, keep_tokens=64,
                       budget_tokens=64, conflict=args.conflict)
    request = EditRequest([item_of(model, *edits[0])], keep)
    results = {}
    for name in ("recursive least squares", "naive rank-one"):
        session = editor.start(model, request)
        if name.startswith("naive"):
            session.stream = Naive(session.stream.start, torch.linalg.inv(session.stream.first_free))
        strengths = [strength for _, _, found in results.values() for strength in found]
        results[name] = run(model, edits, others, session, args.every, strengths)
    return results, len(others)


def main():
    """The whole experiment."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", default="smollm2-135m-instruct")
    parser.add_argument("--edits", type=int, default=50)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--component", default="mlp.28", help="mlp.L, head.L.H or values.L (then --at subject)")
    parser.add_argument("--at", default="answer", choices=["subject", "answer"])
    parser.add_argument("--goal", type=float, default=-0.5, help="logit of the likeliest other token minus that of the new city")
    parser.add_argument("--ridge", type=float, default=1e-3, help="weight of the change's own size")
    parser.add_argument("--conflict", type=float, default=0.01, help="share of a key that must be free")
    parser.add_argument("--contexts", type=int, default=0, help="further places where the subject stands")
    parser.add_argument("--near", type=int, default=0, help="tokens of other countries that are held")
    parser.add_argument("--keep", type=int, default=24, help="dialogues to keep, beside twelve short texts")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="of countries, cities and their order")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = rb.create("model", "llama", checkpoint=args.checkpoint)
    found = {}
    for seed in args.seed:
        found[seed] = experiment(model, args, seed)
        if args.out:
            args.out.write_text(page(args, found))


def page(args, found):
    """The results page: the first seed in full, the ends of the others."""
    results, others = found[args.seed[0]]
    more = "" if args.at == "answer" else f" --at {args.at} --contexts {args.contexts} --near {args.near}"
    more += "" if args.component == "mlp.28" else f" --component {args.component}"
    text = [f"""# Fifty edits in one weight

    python examples/edit_stream.py --edits {args.edits} --every {args.every} --seed {' '.join(map(str, found))}{more} \\
        --out docs/results/edit_stream.md

`{args.checkpoint}`, float32, two busy CPU cores. Each edit lets "{WORDING.format('X')}" be followed by a city that is no
capital (argmax over the whole vocabulary). All edits live in the output matrix of `{args.component}`; no gradient is computed,
the strength of each is searched with forwards. The naive steps get the same strengths.

* *reliability*: share of **all edits so far** that hold; *first ten*: of the first ten
* *paraphrases*: the same, asked as "{PARAPHRASE.format('X')}"
* *others kept*: {others} countries that are never edited and not among the texts to keep: the answer is what it was
* *neutral KL*: {len(TEXTS)} texts, none of them among the {args.keep} dialogues and 12 texts to keep, nats a token
* *change*: Frobenius norm, relative to the weight; *seconds*: mean of the edits since the row above, search included
* *refused*: edits that the editor refused, by then

What an edit adds is the least change of the last stream that puts its city ahead of every other token (`rivals: all`). An edit
that is refused, because earlier ones have settled the output at its key, counts as one that does not hold. Other wordings and
countries that are never edited show what such a stream is not: at the last token all countries have nearly one key.
"""]
    for name, (rows, *_) in results.items():
        text.append(f"## {name[0].upper()}{name[1:]}\n\n{table(rows)}\n")
    rows, seconds, _ = results["recursive least squares"]
    tenth = max(1, len(seconds) // 5)
    text.append(f"Seconds an edit: median {sorted(seconds[:tenth])[tenth // 2]:.2f} of the first {tenth}, "
                f"{sorted(seconds[-tenth:])[tenth // 2]:.2f} of the last {tenth}.\n")
    if len(found) > 1:
        text.append("## All seeds, at the end\n\nEvery option was chosen on seed 0. Other seeds: other cities, another order of "
                    "the countries, other texts to keep.\n")
        text.append(table([{"seed": seed, "": name, **rows[-1]} for seed, (ways, _) in found.items()
                           for name, (rows, *_) in ways.items()]) + "\n")
    return "\n".join(text)


if __name__ == "__main__":
    main()
