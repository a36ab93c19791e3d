"""The generation engine, with a model that answers by rule: what is asked, in which batches, what survives a kill."""

import dataclasses
import json
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from reprbasis_corpora.chat import ChatCorpus
from reprbasis_corpora.config import ChatConfig

from reprbasis.errors import CapabilityError, DataError, StorageError
from reprbasis.interfaces.corpus import CorpusContext
from reprbasis.interfaces.model import Sampling
from reprbasis.interfaces.tokens import Example, Message, TokenSequence
from reprbasis.runtime.generate import complete

END = 3


class Echo:
    """Tokens are code points. Its answer to a dialogue is `#turn:last user message`, then an end-of-turn token."""

    full_name, config, provides = "test/echo", "echo", frozenset({"generate"})
    info = SimpleNamespace(revision="1")
    thinking = None

    def __init__(self):
        self.calls = []
        self.tokenizer = SimpleNamespace(
            decode=lambda ids, skip_special_tokens: "".join(chr(i) for i in ids if i != END))

    def tokenize(self, examples, **_):
        assert all(e.add_prompt and e.messages[-1].role == "user" for e in examples)
        texts = [f"#{sum(m.role == 'user' for m in e.messages)}:{e.messages[-1].content}" for e in examples]
        return [TokenSequence(torch.tensor([ord(c) for c in t]), sequence=i) for i, t in enumerate(texts)]

    def generate(self, prompts, *, sampling):
        self.calls.append(([p.sequence for p in prompts], sampling.seed))
        out = []
        for p in prompts:
            new = [*p.ids.tolist(), END][:sampling.max_new]
            ids = torch.tensor(p.ids.tolist() + new)
            generated = torch.arange(len(ids)) >= len(p)
            out.append(TokenSequence(ids, {"generated": generated, "special": generated & (ids == END)}, p.sequence))
        return out


def ask(*users, key="k"):
    return Example(messages=tuple(Message("user", u) for u in users), key=key)


def contents(example):
    return [m.content for m in example.messages]


def test_every_turn_is_answered_and_given_answers_are_dropped():
    roles = [("system", "s"), ("user", "a"), ("assistant", "old"), ("user", "b")]
    given = Example(messages=tuple(Message(r, c) for r, c in roles), key="k", meta={"domain": "d"})
    [out] = complete(Echo(), [given], Sampling())
    assert contents(out) == ["s", "a", "#1:a", "b", "#2:b"]
    assert out.meta == {"domain": "d", "generated": 10}
    assert not out.continue_last
    assert not out.add_prompt


def test_an_answer_cut_at_the_limit_stays_open():
    cut, whole = complete(Echo(), [ask("hello"), ask("x")], Sampling(max_new=5))
    assert (contents(cut)[-1], cut.continue_last) == ("#1:he", True)
    assert (contents(whole)[-1], whole.continue_last) == ("#1:x", False)


def test_order_is_kept_and_batches_go_by_turn_and_length():
    model = Echo()
    asked = [ask("ccc"), ask("a"), ask("b", "b"), ask("dddd"), ask("ee")]
    found = list(complete(model, asked, Sampling(seed=7), batch=2))
    assert [contents(e)[0] for e in found] == ["ccc", "a", "b", "dddd", "ee"]
    assert [call for call, _ in model.calls] == [[1, 2], [4, 0], [3], [2]]
    seeds = [seed for _, seed in model.calls]
    assert seeds[:3] == [7, 7, 7]
    assert seeds[3] != 7


def test_a_stream_is_answered_window_by_window():
    model = Echo()
    first = next(complete(model, (ask(f"{i:04d}") for i in range(10**9)), Sampling(), batch=2))
    assert contents(first) == ["0000", "#1:0000"]
    assert len(model.calls) == 8


def test_finished_batches_are_reused(tmp_path):
    asked = [ask("a" * i) for i in range(1, 8)]
    context = CorpusContext(scratch=tmp_path / "s")
    first = list(complete(Echo(), asked, Sampling(), batch=3, context=context))
    model = Echo()
    assert list(complete(model, asked, Sampling(), batch=3, context=context)) == first
    assert model.calls == []
    list(complete(model, asked, Sampling(max_new=9), batch=3, context=context))
    assert len(model.calls) == 3
    assert not list((tmp_path / "s").glob("*.part"))


def test_a_damaged_batch_is_generated_again(tmp_path, caplog):
    asked, context = [ask("a"), ask("b")], CorpusContext(scratch=tmp_path)
    first = list(complete(Echo(), asked, Sampling(), context=context))
    [file] = tmp_path.iterdir()
    file.write_text(file.read_text().replace("#1:a", "#1:x"))
    model = Echo()
    assert list(complete(model, asked, Sampling(), context=context)) == first
    assert len(model.calls) == 1
    assert "damaged" in caplog.text


def test_unwritable_scratch(tmp_path):
    (tmp_path / "f").write_text("a file, not a folder")
    with pytest.raises(StorageError, match="cannot be kept"):
        list(complete(Echo(), [ask("a")], Sampling(), context=CorpusContext(scratch=tmp_path / "f")))


def test_what_cannot_be_answered():
    with pytest.raises(DataError, match="plain text"):
        list(complete(Echo(), [Example(text="t")], Sampling()))
    with pytest.raises(DataError, match="no user turn"):
        list(complete(Echo(), [Example(messages=(Message("system", "s"),))], Sampling()))
    model = Echo()
    model.provides = frozenset({"gradients"})
    with pytest.raises(CapabilityError, match="cannot generate"):
        list(complete(model, [ask("a")], Sampling()))


def test_the_prompt_set_through_the_corpus(tmp_path):
    found = list(ChatCorpus(ChatConfig(generate=True, max_new=4)).examples(context=CorpusContext(model=Echo())))
    assert len(found) >= 320
    assert all(m.role == ("user" if i % 2 == 0 else "assistant")
               for e in found for i, m in enumerate(m for m in e.messages if m.role != "system"))


KILLED = """
import os, pathlib, signal, sys, importlib.util
spec = importlib.util.spec_from_file_location("t", sys.argv[1])
t = importlib.util.module_from_spec(spec); spec.loader.exec_module(t)
class Mortal(t.Echo):
    def generate(self, prompts, *, sampling):
        if len(self.calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(prompts, sampling=sampling)
t.run(Mortal(), pathlib.Path(sys.argv[2]))
"""


def run(model, scratch):
    asked = [ask("q" * i, key=str(i)) for i in range(1, 20)]
    return list(complete(model, asked, Sampling(), batch=4, context=CorpusContext(model=model, scratch=scratch)))


def test_sigkill_and_resume_give_the_same(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    done = subprocess.run([sys.executable, script, __file__, tmp_path / "s"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "s").glob("answers-*.json"))) == 2
    model = Echo()
    resumed = run(model, tmp_path / "s")
    assert len(model.calls) == 3
    as_json = [json.dumps([dataclasses.asdict(e) for e in es], sort_keys=True) for es in (resumed, run(Echo(), None))]
    assert as_json[0] == as_json[1]
