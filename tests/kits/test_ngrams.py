"""Greedy de-duplication by n-grams: by hand (sae verification case 7), against sets, and the bounded variant's stated error."""

import random

import numpy as np
import pytest

from reprbasis.kits.ngrams import BloomStore, Deduplicator, ExactStore, grams


def words(start, count):
    return [f"w{i}" for i in range(start, start + count)]


A = words(0, 30)
B = words(5, 20) + words(100, 30)  # 20 consecutive words of A, then 30 of its own
C = words(6, 19) + words(200, 30)  # 19 of A
D = words(105, 20) + words(300, 10)  # 20 of B's own part


def keep(dialogues, memory=None, **options):
    judge = Deduplicator(memory)
    return [judge.admit(grams([" ".join(d)], **options)) for d in dialogues], judge


@pytest.mark.parametrize("memory", [None, 2**16])
def test_a_dropped_dialogue_registers_nothing(memory):
    kept, judge = keep([A, B, C, D], memory)
    assert kept == [True, False, True, True]
    assert (judge.kept, judge.dropped, judge.grams) == (3, 1, 11 + 30 + 11)


@pytest.mark.parametrize("memory", [None, 2**16])
def test_order_decides(memory):
    assert keep([B, A, C, D], memory)[0] == [True, False, True, False]


def test_ngrams_do_not_reach_over_turns():
    joined = grams([" ".join(A)])
    assert len(joined) == 11
    assert len(grams([" ".join(A[:15]), " ".join(A[15:])])) == 0
    assert len(grams([" ".join(A[:20]), " ".join(A[10:])])) == 2
    assert set(grams([" ".join(A[:20]), " ".join(A[10:])])) <= set(joined)


def test_order_of_words_counts():
    assert grams([" ".join(A)], n=3)[0] not in grams([" ".join(reversed(A))], n=3)
    assert not set(grams([" ".join(A)], n=3)) & set(grams([" ".join(reversed(A))], n=3))


@pytest.mark.parametrize(("unit", "text", "count"), [("char", "abcdefg", 5), ("char", "aaaaaaa", 1), ("word", "a b  c\nd", 2),
                                                     ("token", "abcdefg", 5)])
def test_units(unit, text, count):
    assert len(grams([text], n=3, unit=unit, tokenize=lambda t: [ord(c) for c in t])) == count


def test_short_dialogues_are_compared_whole_if_asked():
    short, other = ["yes please", "ok"], ["yes", "please ok"]
    assert len(grams(short)) == 0
    assert keep([["yes"], ["yes"]])[0] == [True, True]
    assert keep([["yes"], ["yes"]], whole=True)[0] == [True, False]
    assert not np.array_equal(grams(short, whole=True), grams(other, whole=True))


def test_greedy_equals_its_definition_on_random_dialogues():
    rng = random.Random(0)
    dialogues = [[rng.choice("abc") for _ in range(rng.randint(2, 40))] for _ in range(400)]
    seen, expected = set(), []
    for d in dialogues:
        own = {tuple(d[i:i + 8]) for i in range(len(d) - 7)}
        expected.append(not own & seen)
        if expected[-1]:
            seen |= own
    assert keep(dialogues, n=8)[0] == expected
    assert 50 < sum(expected) < 400


def test_the_exact_store_is_a_set_at_any_size():
    generator = np.random.default_rng(0)
    store, added = ExactStore(), []
    for _ in range(40):
        some = np.unique(generator.integers(0, 2**64, 10_000, dtype=np.uint64))
        assert not store.any(some)
        store.add(some)
        added.append(some)
    assert all(store.any(some[i:i + 1]) for some in added for i in (0, 5000, len(some) - 1))
    runs = [len(r) for r in store._runs]
    assert runs == sorted(runs, reverse=True)
    assert sum(runs) + len(store._fresh) == sum(map(len, added))


def test_the_bounded_store_keeps_to_its_stated_error():
    generator = np.random.default_rng(0)
    store = BloomStore(2**14)  # 131072 bits
    inside = generator.integers(0, 2**64, 12_000, dtype=np.uint64)
    store.add(inside)
    strange = generator.integers(0, 2**64, 4000 * 10, dtype=np.uint64).reshape(4000, 10)
    assert all(store.any(inside[i:i + 1]) for i in range(0, 12_000, 97))
    seen = np.mean([store.any(row) for row in strange])
    assert 0.01 < store.error(10) < 0.6
    assert seen == pytest.approx(store.error(10), abs=4 * (store.error(10) / 4000) ** 0.5)
    assert store.nbytes == 2**14


def test_false_drops_are_bounded_by_what_is_said():
    rng = random.Random(1)
    fresh = [[f"{rng.random()}" for _ in range(60)] for _ in range(600)]  # none repeats another
    kept, judge = keep(fresh, 2**15)
    assert keep(fresh)[0] == [True] * 600
    wrong = kept.count(False)
    assert 0 < wrong <= judge.false_drops + 4 * judge.false_drops**0.5
