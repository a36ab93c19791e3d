"""Which tasks can a model do? Writes the base accuracies of all tasks, with controls and intervals, as a page.

python examples/tasks.py [--checkpoint NAME] [--n 64] [--seed 0] [--out docs/results/tasks.md]
"""

import argparse
import time
from datetime import date
from pathlib import Path

import reprbasis as rb
from reprbasis.runtime.trial import trial

TASKS = [
    ("sva", {"set": "simple"}), ("sva", {"set": "nounpp"}), ("sva", {"set": "rc"}), ("sva", {"set": "within_rc"}),
    ("ioi", {}), ("ioi", {"corruption": "swap"}), ("pronoun", {}), ("induction", {}), ("induction", {"corruption": "other"}),
    ("greater-than", {}), ("country-capital", {"templates": ()}), ("dict-key", {}), ("list-index", {}),
    ("list-index", {"length": 3})]
FAMILIES = ("A1", "A2", "A3", "A4", "A5", "A6", "B1", "B2")
COLUMNS = ("choice", "shuffled_choice", "top1", "shuffled_top1", "logit_diff", "logit_diff_corrupt", "kept_choice", "kept_top1")


def cell(e):
    """An estimate with its interval."""
    if e is None:
        return ""
    return f"{e.value:.2f}" if e.low is None else f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"


def named(name, options):
    """A task and its options."""
    return " ".join([f"`{name}`", *(f"{k}={v if not isinstance(v, tuple) else list(v)}" for k, v in options.items())])


def table(head, rows):
    """A Markdown table."""
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)])


def error(e, *, wrong):
    """The share of mistakes, from the share of choices."""
    if wrong:
        return cell(e)
    return cell(type(e)(1 - e.value, None if e.high is None else 1 - e.high, None if e.low is None else 1 - e.low, e.n, e.groups))


def main():
    """Run every task and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--use", default="llama")
    parser.add_argument("--checkpoint", default="smollm2-135m-instruct")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results/tasks.md"))
    args = parser.parse_args()
    model = rb.create("model", args.use, checkpoint=args.checkpoint)

    def run(name, options):
        began = time.monotonic()
        found = trial(model, rb.create("task", name, **options), n=args.n, seed=args.seed, batch=32)
        print(f"{name} {options}: choice {cell(found.overall['choice'])}, {time.monotonic() - began:.0f} s", flush=True)
        return found

    rows, hard, examples, cases = [], [], [], []
    for name, options in TASKS:
        found = run(name, options)
        o = found.overall
        rows.append([named(name, options), str(o["choice"].n), str(o["choice"].groups), *(cell(o.get(c)) for c in COLUMNS)])
        shown = found.examples[0]
        likeliest = ", ".join(f"`{token!r}` {p:.2f}" for token, p in shown.top)
        examples.append([named(name, options), f"`{shown.prompt!r}`", f"`{shown.answer[:20]!r}`", likeliest])
        cases += [[named(name, options), case, str(m["choice"].n), cell(m["choice"]), cell(m["logit_diff"])]
                  for case, m in found.cases.items()]
    for family in FAMILIES:
        o = run("dict-key", {"family": family}).overall
        hard.append([family, str(o["choice"].n), error(o["choice"], wrong=False),
                     error(o["choice_corrupt"], wrong=family == "B1"), cell(o["logit_diff"]), cell(o["logit_diff_corrupt"])])
    notes = args.out.with_suffix(".notes.md")
    comment = notes.read_text("utf-8").rstrip() + "\n\n" if notes.is_file() else ""
    text = f"""# Tasks on {args.checkpoint}

Written by `python examples/tasks.py --checkpoint {args.checkpoint} --n {args.n} --seed {args.seed}` on {date.today()}. The model
is unchanged; validation split, {args.n} pairs of each task (fewer if there are no more), seed {args.seed}. Intervals: 95 %,
bootstrap over groups of pairs that have the same two prompts (n pairs, in so many groups). `shuffled` columns are controls: the
same prompts with the answers of another pair. An interval such as [1.00, 1.00] says only that no mistake was seen.

{comment}## All tasks

`choice`: the answer is likelier than the wrong answer (chance 0.50); `top1`: it is the likeliest token; `logit_diff`: answer
minus wrong answer, after the clean and after the corrupted prompt (of mirrored pairs the latter should be negative, of the
others near 0); `kept`: share of pairs that the filters of `reprbasis.batches` keep.

{table(["task", "n", "groups", *COLUMNS], rows)}

## Prompts made to mislead a lookup

`dict-key` with `family`: the share of prompts where the model prefers the wrong answer, beside the control (the same text with a
third name in that place). In all but B1 Python raises KeyError on both; in B1 the prompt has the key and the control has not.

{table(["family", "n", "mistakes", "mistakes in the control", "logit_diff", "logit_diff of the control"], hard)}

## Examples

{table(["task", "prompt", "answer", "likeliest next tokens"], examples)}

## By case

{table(["task", "case", "n", "choice", "logit_diff"], cases)}
"""
    args.out.write_text(text, encoding="utf-8")
    print(args.out)


if __name__ == "__main__":
    main()
