"""The built-in prompt set: large, varied, without repetitions."""

import re
from collections import Counter, defaultdict

import pytest
from reprbasis_corpora.chat import ChatCorpus
from reprbasis_corpora.config import ChatConfig


@pytest.fixture(scope="module")
def prompts():
    return list(ChatCorpus(ChatConfig()).examples())


def turns(example):
    return sum(m.role == "user" for m in example.messages)


def test_counts(prompts):
    domains = Counter(e.meta["domain"] for e in prompts)
    assert len(prompts) >= 320
    assert len(domains) >= 10
    assert min(domains.values()) >= 30
    assert sum(turns(e) > 1 for e in prompts) >= 60
    assert max(map(turns, prompts)) <= 4
    assert sum(e.messages[0].role == "system" for e in prompts) >= 25
    assert sum(e.messages[-1].role == "assistant" for e in prompts) >= 40


def test_any_prefix_is_mixed(prompts):
    some = prompts[:64]
    assert len({e.meta["domain"] for e in some}) >= 10
    assert sum(turns(e) > 1 for e in some) >= 8
    assert sum(e.messages[0].role == "system" for e in some) >= 2


def test_no_near_duplicates(prompts):
    owners = defaultdict(set)
    for e in prompts:
        words = re.findall(r"\w+", " ".join(m.content for m in e.messages).lower())
        for i in range(len(words) - 7):
            owners[tuple(words[i:i + 8])].add(e.key)
    assert [gram for gram, keys in owners.items() if len(keys) > 1] == []
    assert len({e.key for e in prompts}) == len(prompts)


def test_lengths_vary(prompts):
    words = [sum(len(m.content.split()) for m in e.messages if m.role != "assistant") for e in prompts]
    assert min(words) >= 8
    assert max(words) <= 160
    assert sum(w > 80 for w in words) >= 12
    assert sum(w < 25 for w in words) >= 100
