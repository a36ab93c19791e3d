"""Code prompts are true: what Python really prints comes next, and adversarial families are what they claim."""

import ast
import re
from itertools import islice

import pytest

import reprbasis

FAMILIES = ("A1", "A2", "A3", "A4", "A5", "A6", "B1", "B2")
CASES = [("dict-key", {}), ("dict-key", {"entries": 3, "change": "key"}), ("dict-key", {"quotes": "single"}), ("list-index", {}),
         *(("dict-key", {"family": f}) for f in FAMILIES)]


def shell(prompt):
    """What Python prints after the last statement of a shell session; what it printed before must stand in the prompt."""
    names, printed, said = {}, [], ""
    lines = prompt.removesuffix("\n").split("\n")
    for line in lines:
        if not line.startswith(">>> "):
            assert line == said
            continue
        said = ""
        tree = ast.parse(line[4:])
        try:
            if tree.body and isinstance(tree.body[0], ast.Expr):
                printed.clear()
                value = eval(line[4:], {"print": lambda x: printed.append(x)}, names)
                said = printed[0] if printed else repr(value)
            elif tree.body:
                exec(line[4:], {}, names)
        except LookupError:
            said = "Traceback"
    return said


def said(name, text):
    """Whether the whole name stands in the text."""
    return re.search(rf"\b{name}\b", text) is not None


def pairs(name, options, tokenizer, most=60):
    return list(islice(reprbasis.create("task", name, **options).pairs(tokenizer, "train", 0), most))


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_python_agrees(name, options, tokenizers):
    for pair in pairs(name, options, tokenizers["words"]):
        assert shell(pair.clean.text) == pair.meta["answer"]
        after = shell(pair.corrupt.text)
        assert after == (pair.meta["wrong"] if pair.mirrored else pair.meta["answer"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_control_has_no_decoy(family, tokenizers):
    """In an A family the missing name stands before the query on the clean side alone; the control has a third name there."""
    for pair in pairs("dict-key", {"family": family}, tokenizers["words"]):
        before, other = (e.text.rpartition(">>> ")[0] for e in (pair.clean, pair.corrupt))
        query = pair.meta["clean"]["query"]
        if family == "B1":
            assert not said(query, before)
            assert pair.meta["clean"]["decoy"] + pair.meta["clean"]["decoy2"] == query
        else:
            assert said(query, before)
            assert not said(query, other)


def test_where_the_decoy_stands(tokenizers):
    forms = {"A1": ": '{}'", "A2": "# ask for '{}'", "A3": " = {{'{}': ", "A4": ">>> {} = ", "A5": "del ",
             "A6": "print('{0}')\n{0}\n"}
    for family, form in forms.items():
        for pair in pairs("dict-key", {"family": family}, tokenizers["words"], 10):
            assert form.format(pair.meta["clean"]["query"]) in pair.clean.text


@pytest.mark.real
@pytest.mark.parametrize("family", ["A1", "A2", "A3", "A5", "A6", "B1", "B2"])
def test_tokens_repeat_or_not_with_the_real_tokenizer(family, smollm2):
    """A4 is left out: the variable's token begins with a space, so its name repeats and its token does not."""
    for pair in pairs("dict-key", {"family": family}, smollm2.tokenizer):
        clean, control = (smollm2.tokenizer(e.text).input_ids for e in (pair.clean, pair.corrupt))
        at = pair.roles["query"]
        assert len(at) == 1
        assert (clean[at[0]] in clean[:at[0]]) == (family != "B1")
        assert control[at[0]] not in control[:at[0]]
