"""What a survey counts, by hand, and the command."""

import json
import re

import pytest

from reprbasis.cli.main import main
from reprbasis.interfaces.tokens import Example, Message
from reprbasis.kits.survey import coverage, nesting, spearman, steps, survey


@pytest.mark.parametrize(("answer", "count"), [
    ("Paris.", 1), ("It is 3. Then 4.\nSo 7.", 3), ("a\n\nb\n", 2), ("Look:\n```python\nx = 1\ny = 2\n```\nDone.", 3),
    ("The value 3.5 is one number", 1), ("", 0), ("先加。再乘。", 2),
])
def test_steps(answer, count):
    assert steps(answer) == count


@pytest.mark.parametrize(("answer", "depth"), [
    ("plain", 0), ("f(x)", 1), ("f(g[x], {y})", 2), ("a) b)", 0), ("- a\n- b", 1), ("1. a\n   - b\n      - c\n2. d", 3),
])
def test_nesting(answer, depth):
    assert nesting(answer) == depth


def test_spearman():
    assert spearman([1, 2, 3], [10, 20, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [5, 5, 5]) == 0
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)  # scipy.stats.spearmanr


def talk(question, answer=None, **meta):
    said = [Message("user", question)] + ([Message("assistant", answer)] if answer else [])
    return Example(messages=tuple(said), meta=meta)


LONG = " ".join(f"w{i}" for i in range(25))


def test_counts_by_hand():
    one = [talk(LONG, "Yes. No.", domain="a", difficulty="level 2"), talk("short one", domain="b", difficulty="level 10"),
           talk(f"so {LONG}", "Maybe (perhaps).", domain="a", difficulty="level 10")]
    two = [talk(f"again {LONG}"), talk("short and new")]
    first, second = survey({"one": one, "two": two}, tokenize=lambda examples: [[1, 2, 3] for _ in examples])
    assert (first.dialogues, first.answered, first.repeated, first.known) == (3, 2, 1, 0)
    assert (second.dialogues, second.answered, second.repeated, second.known) == (2, 0, 0, 1)
    assert first.domains == {"a": 2, "b": 1}
    assert first.columns["words"].values == [27, 2, 28]
    assert first.columns["steps"].values == [2, 0, 1]
    assert first.columns["nesting"].values == [0, 0, 1]
    assert first.columns["tokens"].summary()["mean"] == 3
    assert first.vocabulary == {1, 2, 3}
    assert first.levels == {"level 2": [0], "level 10": [1, 2]}
    assert first.gradient()["steps"] == spearman([0, 1, 1], [2, 0, 1])
    assert second.gradient() is None
    assert coverage(second, first) == pytest.approx((25 + 1) / (26 + 3))
    assert coverage(first, first) == 1


def test_the_command_on_the_built_in_prompts(tmp_path, capsys):
    page = tmp_path / "survey.html"
    assert main(["survey", "chat", "{use: chat, limit: 50}", "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    for part in ("Dialogues", "Size of a dialogue", "Domains", "Coverage", "chat-1", "chat-2", "maths"):
        assert part in shown
    assert re.search(r"chat-2 +50 .* 0\.0% +100\.0%", shown)  # all of the second stands in the first
    html = page.read_text()
    assert html.count("<table>") == 4
    assert "http" not in html
    assert "class=bar" in html


def test_json_and_mistakes(capsys):
    assert main(["survey", "{use: chat, limit: 5}", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert first["rows"][0][:2] == ["chat", "5"]
    assert main(["survey", "chatt"]) == 2
    assert "'chat'" in capsys.readouterr().err


def test_with_a_model_tokens_are_counted(checkpoint, capsys):
    model = f"{{use: llama, checkpoint: {checkpoint}}}"
    assert main(["survey", "{use: chat, limit: 5}", "--model", model]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"chat +tokens +\d+", shown)
    assert re.search(r"chat +\d+ +0\.\d+ +\d+\.\d%", shown)
