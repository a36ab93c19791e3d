"""Smaller benchmarks on a real model: three further preferences (T6), an invented passage (T4), invented authors (T3).

    python examples/unlearning.py [--only preferences passage authors] [--out docs/results/unlearning.md]

Preferences are forgotten by `routing`. What was taught by fine-tuning lies in all weights, and is forgotten by a local editor and
by gradient methods, beside the model that was never taught it.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from reprbasis_editbench import memory
from reprbasis_editbench.cases import CASES, neutral
from reprbasis_editbench.judge import EDITED, RANDOM, UNEDITED, Judge

import reprbasis as rb
from reprbasis.errors import ReprBasisError
from reprbasis.interfaces.editor import EditRequest
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import Example, TokenBatch
from reprbasis.kits.probes import Neutral

FORGET = {"ridge": {"use": "ridge", "among": "mlps", "top": 4, "aim": "push", "strength": 8.0, "tries": 6},
          "npo": {"use": "npo", "lr": 5e-5, "steps": 16}, "graddiff": {"use": "graddiff", "lr": 5e-5, "steps": 16}}


def table(head, lines):
    """In Markdown."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *lines))


def preferences(model, given):
    """T6: greater-than, subject-verb agreement, pronouns."""
    lines = []
    for name in ("greater-than", "sva", "pronoun"):
        case = CASES[name].case(rb.registry(), model, given.seed, given.n)
        judge, began = Judge(model, case, seed=given.seed), time.process_time()
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
        print(lines[-1], file=sys.stderr, flush=True)
    return ["## Three further preferences (T6)", "",
            f"`routing` with `folds: 2`; {2 * given.n} prompts fitted, {given.n} of each held-out kind; logit difference, aim 0.",
            "",
            table(["preference", "heads", "logit difference", "last of these, random edit", "capitals kept", "neutral KL",
                   "rise of induction loss", "CPU s"], lines), ""]


def forgetting(model, request, scores, names):
    """Condition -> measurements, of editors on a model that was taught."""
    texts = Neutral(model, neutral(1))
    for name in names:
        began = time.process_time()
        try:
            plan = rb.create("editor", FORGET[name]["use"], **{k: v for k, v in FORGET[name].items() if k != "use"}).edit(
                model, None, request)
        except ReprBasisError as error:
            yield name, {"refused": error.what}
            continue
        seconds = time.process_time() - began
        with plan.applied(model):
            found = {m.name: m.value for m in scores(name)}
            yield name, {**found, "KL on other texts": float(texts.kl(model).mean()), "CPU s": seconds}


def passage(model, given):
    """T4: taught, then every token that the model gives rightly is to be another."""
    text = memory.passage()
    taught = memory.teach(model, [("", text)], epochs=given.epochs, lr=1e-4)
    rows = {"never taught": {m.name: m.value for m in memory.muse_scores(model, "x", generate=False)}}
    with taught.applied(model):
        [sequence] = model.tokenize([Example(text=text)])
        places = list(range(8, min(len(sequence), 120), 8))
        cut = [sequence.cut(i) for i in places]
        order = [model.forward(TokenBatch.pad([s]), logits="last").logits[0, 0].argsort(descending=True)[:2] for s in cut]
        change = []
        for s, i, top in zip(cut, places, order, strict=True):
            said = int(sequence.ids[i])
            if int(top[0]) == said:
                change.append(ContrastBatch(TokenBatch.pad([s]), None, Targets(torch.tensor([[said]]), top[1:][None])))
        rows["taught"] = {m.name: m.value for m in memory.muse_scores(model, "x", generate=False)}
        if change:
            request = EditRequest(change, neutral(0))
            rows |= dict(forgetting(model, request, lambda n: memory.muse_scores(model, n, generate=False), FORGET))
    return written("An invented passage (T4)", f"{len(sequence)} tokens, taught for {given.epochs} steps; {len(change)} places "
                   "are given to the editors, the scores are about all of it.", rows)


def authors(model, given):
    """T3: invented authors; the model that was never taught those to be forgotten is the reference."""
    world = memory.Taught.make(model, n=given.authors, forgotten=1, epochs=given.epochs, lr=1e-4)
    rows = {}
    with world.without.applied(model):
        rows["never taught them"] = {m.name: m.value for m in memory.tofu_scores(model, world, "x", generate=False)}
    with world.full.applied(model):
        rows["taught"] = {m.name: m.value for m in memory.tofu_scores(model, world, "x", generate=False)}
        request = world.request(model)
        rows |= dict(forgetting(model, request, lambda n: memory.tofu_scores(model, world, n, generate=False), FORGET))
    return written("Invented authors (T3)", f"{given.authors} authors, one of them to be forgotten, taught for {given.epochs} "
                   "epochs. Without generation, so `model_utility` has six parts.", rows)


def written(title, told, rows):
    """A section: a line for each condition."""
    wanted = ("forget_quality", "forget_truth_ratio", "forget_prob", "model_utility", "privleak", "extraction_strength",
              "exact_memorization", "prob", "KL on other texts", "CPU s")
    there = [name for name in wanted if any(name in row for row in rows.values())]
    lines = [[name, *(f"{row[m]:.4g}" if m in row else row.get("refused", "-") for m in there)] for name, row in rows.items()]
    return [f"## {title}", "", told, "", table(["", *there], lines), ""]


def main():
    """The sections asked for."""
    parts = {"preferences": preferences, "passage": passage, "authors": authors}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--n", type=int, default=6, help="prompts of each held-out kind")
    parser.add_argument("--authors", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="smollm2-135m-instruct")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    model = rb.create("model", "llama", checkpoint=given.checkpoint)
    only = f" --only {' '.join(given.only)}" if len(given.only) < len(parts) else ""
    lines = ["# Unlearning, small", "", f"    python examples/unlearning.py{only} --out docs/results/unlearning.md", "",
             f"`{given.checkpoint}`, seed {given.seed}.", ""]
    for name in given.only:
        lines += parts[name](model, given)
        if given.out:
            given.out.write_text("\n".join(lines), "utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
