"""Mixtures: proportions, repetitions, and what is told of them."""

import json
from collections import Counter

import pytest
from reprbasis_corpora.mix import MixCorpus

import reprbasis as rb
from reprbasis.errors import CapabilityError, ConfigError, DataError
from reprbasis.interfaces.corpus import CorpusContext


@pytest.fixture
def files(tmp_path):
    """Three files of 40, 20 and 10 dialogues; every fourth of the second repeats 25 words of the first."""
    def write(name, count, start, copied=0):
        rows = []
        for i in range(count):
            own = " ".join(f"{name}{i}-{j}" for j in range(25))
            same = " ".join(f"a{i // 4}-{j}" for j in range(25)) if copied and i % copied == 0 else ""
            rows.append(json.dumps({"prompt": f"{own} {same}".strip(), "response": f"answer {start + i}", "id": f"{name}{i}"}))
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(rows))
        return str(path)

    return [write("a", 40, 0), write("b", 20, 100, copied=4), write("c", 10, 200)]


def mix(files, **options):
    return rb.create("corpus", "mix", sources=[{"use": "chat", "path": f} for f in files], **options)


def test_dialogues_come_in_proportion_while_they_last(files):
    found = list(mix(files, weights=[4, 2, 1], dedup="none").examples())
    assert len(found) == 70
    for part in (found[:7], found[:35], found[:70]):
        count = Counter(e.meta["corpus"] for e in part)
        assert count == {"chat-1": len(part) // 7 * 4, "chat-2": len(part) // 7 * 2, "chat-3": len(part) // 7}
    assert [e.key for e in found if e.meta["corpus"] == "chat-3"] == [f"chat-3/c{i}" for i in range(10)]


def test_a_source_that_ends_leaves_the_rest_to_the_others(files):
    found = [e.meta["corpus"] for e in mix(files, dedup="none").examples()]
    assert found[:30] == ["chat-1", "chat-2", "chat-3"] * 10
    assert Counter(found[30:50]) == {"chat-1": 10, "chat-2": 10}
    assert set(found[50:]) == {"chat-1"}


@pytest.mark.parametrize("method", ["exact", "bounded"])
def test_repetitions_are_dropped_counted_and_made_up_for(files, method):
    context = CorpusContext()
    found = [e.key for e in mix(files[:2], dedup=method).examples(context=context)]
    told = context.facts["mix"]
    assert [f"chat-2/b{i}" for i in range(20) if i % 4 == 0] == [f"chat-2/b{i}" for i in range(20) if f"chat-2/b{i}" not in found]
    assert [(s["read"], s["kept"], s["dropped"]) for s in told["sources"]] == [(40, 40, 0), (20, 15, 5)]
    assert found[:4] == ["chat-1/a0", "chat-2/b1", "chat-1/a1", "chat-2/b2"]  # b0 was dropped, b1 came at once
    assert told["dedup"]["dropped"] == 5
    assert told["dedup"]["expected_false_drops"] < 1e-6
    json.dumps(context.facts)


@pytest.mark.parametrize("options", [{}, {"unit": "char", "ngram": 40}, {"dedup": "bounded", "dedup_bytes": 2048}])
def test_the_number_of_workers_changes_nothing(files, options):
    alone, together = CorpusContext(), CorpusContext()
    one = list(mix(files, **options).examples(seed=3, context=alone))
    two = list(mix(files, workers=2, **options).examples(seed=3, context=together))
    assert one == two
    assert alone.facts == together.facts
    assert len(one) < 70


def test_limit_and_nesting(files):
    inner = {"use": "mix", "sources": [{"use": "chat", "path": files[1]}, {"use": "chat", "path": files[2]}]}
    outer = rb.create("corpus", "mix", sources=[inner, {"use": "chat", "path": files[0]}], limit=9)
    context = CorpusContext()
    found = [e.key for e in outer.examples(context=context)]
    assert len(found) == 9
    assert found[:3] == ["mix/chat-1/b0", "chat/a1", "mix/chat-2/c0"]  # a0 repeats b0
    assert [s["source"] for s in context.facts["mix"]["sources"][0]["facts"]["mix"]["sources"]] == ["chat-1", "chat-2"]


def test_what_does_not_fit_is_said(files):
    with pytest.raises(ConfigError, match="3 sources and 2 weights"):
        mix(files, weights=[1, 2])
    with pytest.raises(CapabilityError, match="need the model's tokenizer"):
        mix(files, unit="token").examples()
    empty = rb.create("corpus", "mix", sources=[{"use": "mix", "sources": ["chat"], "limit": 1}])
    assert isinstance(empty, MixCorpus)
    with pytest.raises(DataError, match="no such file"):
        list(mix([files[0], "missing.jsonl"]).examples())
