"""The text corpus."""

import pytest
from reprbasis_corpora.config import TextConfig
from reprbasis_corpora.text import TextCorpus

from reprbasis.errors import DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("One\ntwo.\n\n  \nThree.\n")
    (tmp_path / "b" / "a.txt").write_text("\nFour.")
    return tmp_path


@pytest.mark.parametrize(("unit", "expected"), [
    ("file", [("a.txt:1", "One\ntwo.\n\n  \nThree.\n"), ("b/a.txt:1", "\nFour.")]),
    ("paragraph", [("a.txt:1", "One\ntwo."), ("a.txt:5", "Three."), ("b/a.txt:2", "Four.")]),
    ("line", [("a.txt:1", "One"), ("a.txt:2", "two."), ("a.txt:5", "Three."), ("b/a.txt:2", "Four.")]),
])
def test_units(folder, unit, expected):
    found = list(TextCorpus(TextConfig(path=folder, unit=unit)).examples())
    assert [(e.key, e.text) for e in found] == expected
    assert [e.origin for e in found] == [f"{folder}/{e.key}" for e in found]


def test_one_file_and_limit(folder):
    [example] = TextCorpus(TextConfig(path=folder / "a.txt", unit="line", limit=1)).examples()
    assert example.text == "One"


def test_shuffle_goes_by_seed(tmp_path):
    (tmp_path / "n.txt").write_text("\n".join(map(str, range(50))))
    corpus = TextCorpus(TextConfig(path=tmp_path / "n.txt", unit="line", shuffle=True))
    a, b, c = ([e.key for e in corpus.examples(seed=s)] for s in (0, 0, 1))
    assert a == b != c
    assert sorted(a) == sorted(c)


@pytest.mark.parametrize(("name", "data", "message"), [
    ("x.txt", None, "no such file"), (".", None, "no file in the folder matches"),
    ("e.txt", b" \n\n", "no text but blank lines"), ("l.txt", b"ok\ncaf\xe9", "not UTF-8"),
])
def test_errors(tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        TextCorpus(TextConfig(path=tmp_path / name)).examples()
