"""Is a judge any good? Concepts that nobody can mistake, judged by it: what it scores here is the most it can say of latents.

    python examples/judge.py local          # or lexical, semantic, '{use: openai, model: ..., url: ...}'

Of each concept the judge is shown four marked words, and some of others unmarked; then it says of eight new marked words and of
eight of other concepts whether they have it (area under the ROC curve, chance 0.5): by its own explanation and, if it reads, by
the concept's plain name and by the name of another concept.
"""

import argparse
import statistics

import yaml

import reprbasis as rb
from reprbasis.interfaces.judge import Explanation, Passage
from reprbasis.interfaces.tokens import Example

WORDS = {
    "a number": "seven twelve forty ninety three eleven sixty two eight thirty five twenty",
    "an animal": "dog horse sheep lion cat tiger cow bear mouse wolf goat fox",
    "a colour": "red yellow purple white blue green black orange brown pink grey violet",
    "a country": "France Japan Brazil Egypt Spain India Canada Kenya Italy China Peru Norway",
    "a part of the body": "hand knee shoulder nose foot ear arm mouth leg elbow finger neck",
}
TEXTS = ("They spoke of {} for a long time", "I had never thought about {} before", "She wrote {} on the wall",
         "He asked about {} again", "We all remember {} from that day", "The story begins with {} and ends there",
         "It says {} on the first page", "My mother mentioned {} yesterday")


def passage(model, text, word, *, marked):
    """`text` with the word in it."""
    before, after = text.split("{}")
    ids, marks = [], []
    for part in (before.rstrip(), " " + word, after):
        new = model.tokenize([Example(text=part)])[0].ids.tolist()
        marks += range(len(ids), len(ids) + len(new)) if part == " " + word else []
        ids += new
    return Passage(tuple(model.tokenizer.decode([i]) for i in ids), tuple(ids), tuple(marks) if marked else ())


def curve(yes, no):
    """Area under the ROC curve."""
    return float((yes[:, None] > no).float().mean() + 0.5 * (yes[:, None] == no).float().mean())


def main():
    """One line for each concept, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("judge", type=yaml.safe_load)
    parser.add_argument("--model", type=yaml.safe_load, default={"use": "llama", "checkpoint": "smollm2-135m-instruct"})
    args = parser.parse_args()
    registry = rb.registry()
    model = registry.build(registry.select("model", args.model))
    judge = registry.build(registry.select("judge", args.judge))
    reads = judge.full_name.rpartition("/")[2] in ("local", "openai")
    names, words = list(WORDS), {name: text.split() for name, text in WORDS.items()}
    rows = []
    for place, name in enumerate(names):
        others = [w for other in names if other != name for w in words[other]]
        shown = [passage(model, t, w, marked=True) for t, w in zip(TEXTS, words[name][:4], strict=False)]
        contrast = [passage(model, t, w, marked=False) for t, w in zip(TEXTS, others[::11], strict=False)]
        told = judge.explain(shown, contrast, model=model)
        asked = [passage(model, t, w, marked=True) for t, w in zip(TEXTS, words[name][4:], strict=True)]
        asked += [passage(model, t, w, marked=True) for t, w in zip(TEXTS, others[3::6], strict=True)]
        said = [told] + [Explanation(n) for n in (name, names[place - 1])] * reads
        scores = [judge.match(one, asked, model=model) for one in said]
        rows.append([curve(s[:8], s[8:]) for s in scores])
        print(f"{name:20}", *(f"{value:.2f}" for value in rows[-1]), told.text[:80])
    print(f"{'mean':20}", *(f"{statistics.mean(column):.2f}" for column in zip(*rows, strict=True)))


if __name__ == "__main__":
    main()
