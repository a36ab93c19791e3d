"""Data sets by name, on a few made-up rows in the columns of the real ones."""

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from reprbasis_corpora.config import datasets_table

import reprbasis as rb
from reprbasis.errors import ConfigError, DataError
from reprbasis.interfaces.corpus import CorpusContext

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(datasets_table())


def hub(**options):
    return rb.create("corpus", "hub", **{k: str(v) if isinstance(v, Path) else v for k, v in options.items()})


def rows(name):
    return [json.loads(line) for line in (FIXTURES / f"{name}.jsonl").read_text("utf-8").splitlines()]


def said(example):
    return [(m.role, m.content) for m in example.messages]


def test_the_table_knows_the_data_sets_of_the_issue():
    ids = {entry["id"].rpartition("/")[2] for entry in datasets_table().values()}
    assert {"gsm8k", "Calc-ape210k", "NuminaMath-CoT", "Infinity-Instruct", "Magicoder-OSS-Instruct-75K"} <= ids
    assert {"WildChat-1M-Full", "tulu-3-sft-mixture", "orca-agentinstruct-1M-v1-cleaned", "lmsys-chat-1m"} <= ids
    assert {p.stem for p in FIXTURES.glob("*.jsonl")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_fixtures_have_the_columns_of_the_real_data_set(name):
    assert all(list(row) == datasets_table()[name]["columns"] for row in rows(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_named_data_set_reads_its_rows(name):
    found = list(hub(dataset=name, path=FIXTURES / f"{name}.jsonl").examples())
    assert len(found) == 2
    assert all(e.messages[-1].role == "assistant" for e in found)
    assert all(e.meta["domain"] for e in found[:1])
    assert found[0].key == "row-1"


def test_question_and_answer():
    first, _ = hub(dataset="gsm8k", path=FIXTURES / "gsm8k.jsonl").examples()
    assert said(first) == [("user", rows("gsm8k")[0]["question"]), ("assistant", rows("gsm8k")[0]["answer"])]
    assert first.meta == {"domain": "maths"}


def test_turns_named_from_and_value_and_nested_labels():
    first, second = hub(dataset="infinity-instruct", path=FIXTURES / "infinity-instruct.jsonl").examples()
    assert said(first) == [("user", "Name a river in France."), ("assistant", "The Loire.")]
    assert first.meta == {"domain": "encyclopedic knowledge", "source": "Subjective", "langdetect": "en"}
    assert "domain" not in second.meta
    assert len(second.messages) == 4


def test_rows_that_cannot_be_used_are_left_out_and_counted():
    context = CorpusContext()
    found = list(hub(dataset="wildchat", path=FIXTURES / "wildchat.jsonl").examples(context=context))
    assert [e.key for e in found] == ["row-1", "row-3"]
    assert context.facts["hub"] == {"read": 3, "given": 2, "left_out": {"the content is empty": 1}}
    json.dumps(context.facts)


def test_an_id_of_the_table_is_as_good_as_its_name():
    said_of = [[(said(e), e.meta) for e in hub(dataset=name, path=FIXTURES / "tulu-3.jsonl").examples()]
               for name in ("tulu-3", "allenai/tulu-3-sft-mixture")]
    assert said_of[0] == said_of[1]


def test_own_columns_win_over_the_table():
    found = hub(dataset="numinamath-cot", path=FIXTURES / "numinamath-cot.jsonl", ask="problem", answer="source").examples()
    assert said(next(found)) == [("user", "Solve x + 2 = 5."), ("assistant", "synthetic_math")]


def test_filter_and_limit():
    french = hub(dataset="wildchat", path=FIXTURES / "wildchat.jsonl", where={"language": "French"})
    assert [said(e)[0][1] for e in french.examples()] == ["Bonjour"]
    assert len(list(hub(dataset="tulu-3", path=FIXTURES / "tulu-3.jsonl", limit=1).examples())) == 1
    with pytest.raises(DataError, match="no row can be used"):
        list(hub(dataset="wildchat", path=FIXTURES / "wildchat.jsonl", where={"language": "Latin"}).examples())


def test_own_files_with_own_columns(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"q": "Two?", "a": "2", "level": 2}\n')
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"q": "One?", "a": "1", "level": 1}\n')
    found = list(hub(path=tmp_path, ask="q", answer="a", difficulty="level").examples())
    assert [(said(e)[0][1], e.meta["difficulty"]) for e in found] == [("One?", 1), ("Two?", 2)]


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = sys.modules["pyarrow"].Table.from_pylist(rows("numinamath-cot"))
    parquet.write_table(table, tmp_path / "n.parquet")
    direct = list(hub(dataset="numinamath-cot", path=FIXTURES / "numinamath-cot.jsonl").examples())
    assert [said(e) for e in hub(dataset="numinamath-cot", path=tmp_path / "n.parquet").examples()] == list(map(said, direct))


@pytest.mark.parametrize("name", NAMES)
def test_online_the_id_subset_and_split_of_the_table_are_asked_for(name, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked, load = [], datasets.load_dataset

    def offline(*args, **options):
        asked.append((*args, options))
        return load("json", data_files=str(FIXTURES / f"{name}.jsonl"), split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", offline)
    found = list(hub(dataset=name, revision="abc").examples())
    entry = datasets_table()[name]
    assert asked == [(entry["id"], entry.get("subset"), {"split": "train", "revision": "abc", "streaming": True})]
    direct = hub(dataset=name, path=FIXTURES / f"{name}.jsonl").examples()
    assert [(said(e), e.key, e.meta) for e in found] == [(said(e), e.key, e.meta) for e in direct]


def test_without_the_package_the_pip_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="needs the package") as caught:
        list(hub(dataset="gsm8k").examples())
    assert "pip install 'reprbasis-corpora[hub]'" in caught.value.do


def test_without_a_network_it_is_told(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=unreachable))
    with pytest.raises(DataError, match="cannot be read: ConnectionError: Couldn't reach") as caught:
        list(hub(dataset="gsm8k").examples())
    assert caught.value.where == "openai/gsm8k"
    assert "give their path" in caught.value.do


@pytest.mark.parametrize(("options", "message"), [
    ({"dataset": "gsm9k"}, "no data set 'gsm9k'"), ({}, "neither dataset nor path"),
    ({"dataset": "someone/chats"}, "which columns hold"), ({"path": "x.jsonl"}, "which columns hold"),
])
def test_what_is_missing_is_said_before_anything_is_read(options, message):
    with pytest.raises(ConfigError, match=message):
        hub(**options)


@pytest.mark.parametrize(("name", "text", "message"), [
    ("x.jsonl", '{"ask": 1}', "no column 'question'"), ("x.jsonl", "{", "not JSON"), ("x.jsonl", "[1]", "not a JSON object"),
    ("x.txt", "a", "this type cannot be read"), (None, "", "no such file"),
])
def test_what_cannot_be_read_is_said(tmp_path, name, text, message):
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        list(hub(dataset="gsm8k", path=tmp_path / (name or "none.jsonl")).examples())
