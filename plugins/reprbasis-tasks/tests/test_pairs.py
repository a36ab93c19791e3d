"""Pairs of every task and option with several tokenizers: aligned, balanced, and no slot value in two splits."""

from collections import Counter
from itertools import islice

import pytest

import reprbasis

FAMILIES = ("A1", "A2", "A3", "A4", "A5", "A6", "B1", "B2")
TASKS = [*(("sva", {"set": kind}) for kind in ("simple", "nounpp", "rc", "within_rc")),
         ("ioi", {}), ("ioi", {"corruption": "swap", "templates": [0, 3], "order": "abba"}), ("pronoun", {}),
         ("dict-key", {}), ("dict-key", {"change": "key", "entries": 3}), ("list-index", {}), ("list-index", {"length": 4}),
         ("induction", {}), ("induction", {"repeated": 1, "corruption": "other"}), ("greater-than", {}),
         ("country-capital", {}), ("country-capital", {"templates": [0, 1, 2, 3], "lengths": "one"}),
         *(("dict-key", {"family": family}) for family in FAMILIES)]
BYTES = [task for task in TASKS if task[0] in ("ioi", "pronoun", "list-index")]
HELD_OUT = {"sva": ("subject",), "ioi": ("io", "s1"), "pronoun": ("name",), "greater-than": ("event", "year"),
            "country-capital": ("country",), "dict-key": ("query", "key1", "key2", "decoy"), "induction": ("w1", "query")}
CASES = [*(pytest.param(*task, "words", id=f"{task}-words") for task in TASKS),
         *(pytest.param(*task, "bytes", id=f"{task}-bytes") for task in BYTES),
         *(pytest.param(*task, "smollm2", id=f"{task}-smollm2", marks=pytest.mark.real) for task in TASKS)]


def drawn(name, options, tokenizer, split="train", most=40, seed=0):
    return list(islice(reprbasis.create("task", name, **options).pairs(tokenizer, split, seed), most))


@pytest.mark.parametrize(("name", "options", "kind"), CASES)
def test_pairs(name, options, kind, request):
    tokenizer = (request.getfixturevalue("smollm2").tokenizer if kind == "smollm2"
                 else request.getfixturevalue("tokenizers")[kind])
    values = {}
    layouts = {}
    for split in ("train", "validation", "test"):
        pairs = drawn(name, options, tokenizer, split)
        assert len(pairs) >= 8, split
        cases = Counter(pair.meta["case"] for pair in pairs)
        for pair in pairs:
            clean, corrupt = (tokenizer(e.text)["input_ids"] for e in (pair.clean, pair.corrupt))
            assert len(clean) == len(corrupt)
            changed = {at for slot in pair.meta["corrupt"] for at in pair.roles[slot]}
            assert {i for i in range(len(clean)) if clean[i] != corrupt[i]} <= changed
            assert pair.roles["end"] == (len(clean) - 1,)
            assert not set(pair.answer) & set(pair.wrong)
            for answer in ([pair.meta["answer"]] if isinstance(pair.meta["answer"], str) else pair.meta["answer"]):
                whole = pair.clean.text + answer
                if tokenizer(whole)["input_ids"][:len(clean)] == clean and len(pair.answer) == 1:
                    assert pair.answer[0] in tokenizer(whole)["input_ids"]
            if options.get("lengths") != "any" and name != "country-capital":
                template = (pair.meta["case"].removesuffix("-control"), tuple(pair.roles))
                layouts.setdefault(template, set()).add((len(clean), tuple(pair.roles.items())))
            if name in HELD_OUT and options.get("family") != "B2":
                for slot in HELD_OUT[name]:
                    for side in (pair.meta["clean"], {**pair.meta["clean"], **pair.meta["corrupt"]}):
                        if slot in side and not (slot == "year" and side[slot] == "01"):
                            values.setdefault(slot if slot in ("event", "year", "decoy") else "word", {}).setdefault(
                                side[slot], set()).add(split)
        if all(pair.mirrored for pair in pairs) and name not in ("ioi", "dict-key", "country-capital", "induction"):
            assert len({sum(n for c, n in cases.items() if c.startswith(side) or c.endswith(side))
                        for side in _sides(name, options)}) == 1, cases
    if options.get("family") != "B1":  # pieces of names may be alike
        assert all(len(where) == 1 for found in values.values() for where in found.values()), values
    if name not in ("pronoun",):
        assert all(len(found) == 1 for found in layouts.values()), layouts


def _sides(name, options):
    if name == "sva":
        return ("singular", "plural") if options["set"] == "simple" else ()
    return {"pronoun": ("woman", "man"), "list-index": ("present", "absent"), "greater-than": ()}[name]
