"""Pairs of every task and option with several tokenizers: aligned, of one layout, balanced, no slot value in two splits."""

from collections import Counter, defaultdict
from itertools import islice

import pytest

import reprbasis

FAMILIES = ("A1", "A2", "A3", "A4", "A5", "A6", "B1", "B2")
NAMES = ("key1", "key2", "key3", "query", "decoy")
TASKS = {  # task and options -> slots whose values no two splits share
    **{("sva", ("set", kind)): ("subject", "other") for kind in ("simple", "nounpp", "rc", "within_rc")},
    ("ioi",): ("io", "s1", "s2"), ("ioi", ("corruption", "swap"), ("templates", (0, 3)), ("order", "abba")): ("io", "s1", "s2"),
    ("pronoun",): ("name",), ("greater-than",): ("event",),
    ("country-capital", ("lengths", "one")): ("country",), ("country-capital", ("templates", ())): ("country",),
    ("dict-key",): NAMES, ("dict-key", ("change", "key"), ("entries", 3)): NAMES,
    **{("dict-key", ("family", family)): NAMES[:4] if family == "B1" else NAMES for family in FAMILIES[:-1]},
    ("dict-key", ("family", "B2")): (), ("list-index",): (), ("list-index", ("length", 4)): (),
    ("induction",): ("w1", "w2", "w3", "query"),
    ("induction", ("repeated", 1), ("corruption", "other")): ("w1", "w2", "w3", "query"),
}
BYTES = [task for task in TASKS if task[0] in ("ioi", "pronoun", "list-index")]
TRAINED = [("sva", ("set", "nounpp")), ("ioi",), ("dict-key",), ("list-index",)]
MANY = {"ioi", "pronoun", "country-capital"}  # several templates, so several layouts
CASES = [*(pytest.param(task, "words", id=f"{task}-words") for task in TASKS),
         *(pytest.param(task, "bytes", id=f"{task}-bytes") for task in BYTES),
         *(pytest.param(task, kind, id=f"{task}-{kind}") for task in TRAINED for kind in ("pieces", "groups")),
         *(pytest.param(task, "smollm2", id=f"{task}-smollm2", marks=pytest.mark.real) for task in TASKS)]


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_pairs(task, kind, request):
    name, *options = task
    tokenizer = request.getfixturevalue("smollm2").tokenizer if kind == "smollm2" else request.getfixturevalue("tokenizers")[kind]
    made = reprbasis.create("task", name, **dict(options))
    owner, layouts = {}, set()
    for split in ("train", "validation", "test"):
        pairs = list(islice(made.pairs(tokenizer, split, 0), 40))
        assert len(pairs) >= 8, split
        for pair in pairs:
            layouts.add(check(pair, tokenizer))
            for side in (pair.meta["clean"], {**pair.meta["clean"], **pair.meta["corrupt"]}):
                for slot in TASKS[task]:
                    if value := side.get(slot):
                        assert owner.setdefault((kind_of(slot), value), split) == split, (slot, value)
        balanced(pairs)
    if name not in MANY and "family" not in dict(options):
        assert len(layouts) == 1


def kind_of(slot):
    """Subjects and other nouns may be the same word; names in different places may not."""
    return slot if slot in ("subject", "other") else ""


def check(pair, tokenizer):
    """A pair aligns, and its answers are what the tokenizer puts next; gives its layout."""
    clean, corrupt = (tokenizer(e.text)["input_ids"] for e in (pair.clean, pair.corrupt))
    assert len(clean) == len(corrupt)
    assert {i for i in range(len(clean)) if clean[i] != corrupt[i]} <= {i for s in pair.meta["corrupt"] for i in pair.roles[s]}
    assert pair.roles["end"] == (len(clean) - 1,)
    assert not set(pair.answer) & set(pair.wrong)
    for role, at in pair.roles.items():
        if role in pair.meta["clean"]:
            assert pair.meta["clean"][role] in tokenizer.decode([clean[i] for i in at])
    for side, ids in (("answer", pair.answer), ("wrong", pair.wrong)):
        told = [pair.meta[side]] if isinstance(pair.meta[side], str) else pair.meta[side]
        cut = [next(a[i:] for i in reversed(range(len(a))) if pair.clean.text.endswith(a[:i])
                    and tokenizer(pair.clean.text + a[i:])["input_ids"][:len(clean)] == clean) for a in told]
        following = {tokenizer(pair.clean.text + a)["input_ids"][len(clean)] for a in cut}
        assert set(ids) <= following
    return len(clean), tuple(sorted(pair.roles.items()))


def balanced(pairs):
    """Mirrored pairs come in both directions."""
    both = defaultdict(Counter)
    for pair in pairs:
        both[frozenset((pair.clean.text, pair.corrupt.text))][pair.clean.text] += 1
    if all(pair.mirrored for pair in pairs) and not pairs[0].meta["case"].startswith(("abba", "baba", "B1")):
        assert all(len(found) == 2 for found in both.values())
