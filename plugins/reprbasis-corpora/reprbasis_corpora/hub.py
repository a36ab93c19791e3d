"""Corpus `hub`: chat data sets of the Hugging Face hub, streamed, or the same rows from local files.

A row that cannot be used (an empty turn, an unknown role, no user turn) is left out and counted: collected data sets of a million
rows have some. `context.facts["hub"]` says how many and why.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reprbasis.errors import DataError, near
from reprbasis.interfaces.corpus import Corpus, CorpusContext
from reprbasis.interfaces.tokens import Example

from .chat import ROLES, dialogue
from .config import HubConfig, dataset_entry

LINES, TABLES = (".jsonl", ".json", ".jsonl.gz", ".json.gz"), (".parquet",)
EXTRA = "pip install 'reprbasis-corpora[hub]'"


class HubCorpus(Corpus[HubConfig]):
    """See the module."""

    def examples(self, *, seed: int = 0, context: CorpusContext | None = None) -> Iterator[Example]:
        """Dialogues in the order of the data set; `key` is the number of the row.

        Raises:
            DataError: the data set or file cannot be read, a column is missing, or no row can be used.
        """
        context = context or CorpusContext()
        config = self.config
        known = {**dataset_entry(config.dataset or ""), **{k: v for k, v in self._given() if v is not None}}
        if config.ask and not config.messages:
            known.pop("messages", None)
        counts: dict[str, Any] = {"read": 0, "given": 0, "left_out": Counter()}
        context.facts["hub"] = counts
        for number, (where, row) in enumerate(self._rows(known), 1):
            if counts["given"] == config.limit:
                return
            if number == 1:
                _require(row, known, where)
            if any(row.get(k) != v for k, v in config.where.items()):
                continue
            counts["read"] += 1
            try:
                example = _example(row, known, where, number)
            except DataError as error:
                counts["left_out"][error.what] += 1
                continue
            counts["given"] += 1
            yield example
        if not counts["given"]:
            worst = ", ".join(what for what, _ in counts["left_out"].most_common(3)) or "it is empty, or `where` fits no row"
            raise DataError(f"no row can be used: {worst}", where=str(config.path or known.get("id", config.dataset)),
                            do="check the columns and the filter")

    def _given(self) -> Iterable[tuple[str, Any]]:
        return ((k, getattr(self.config, k)) for k in ("subset", "split", "messages", "ask", "answer", "domain", "difficulty"))

    def _rows(self, known: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.config.path is not None:
            for file in _files(self.config.path):
                yield from _parquet(file) if file.suffix in TABLES else _lines(file)
            return
        name = known.get("id", self.config.dataset)
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise DataError(f"reading '{name}' from the hub needs the package `datasets`", where=name,
                            do=f"{EXTRA}, or download its files and give their path") from error
        split = known.get("split", "train")
        try:
            rows = load_dataset(name, known.get("subset"), split=split, revision=self.config.revision, streaming=True)
            for number, row in enumerate(rows):
                yield f"{name}:{split}:{number}", row
        except DataError:
            raise
        except Exception as error:  # whatever the hub, the network or the format brings up; it is told, not hidden
            raise DataError(f"the data set cannot be read: {type(error).__name__}: {error}", where=name,
                            do="check the network, the id, subset and split, and whether its terms must be accepted on the hub "
                               "first; or download its files and give their path") from error


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(LINES + TABLES):
            raise DataError("files of this type cannot be read", where=str(path), do=f"use {', '.join(LINES + TABLES)}")
        return [path]
    found = sorted(p for p in path.rglob("*") if p.name.endswith(LINES + TABLES)) if path.is_dir() else []
    if not found:
        raise DataError("there is no such file or folder" if not path.exists() else "the folder holds no data file",
                        where=str(path), do=f"give files of type {', '.join(LINES + TABLES)}")
    return found


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{file}:{number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"the row is not JSON ({error.msg} at column {error.colno})", where=where,
                                    do="write one JSON object on each line") from None
                if not isinstance(row, dict):
                    raise DataError("the row is not a JSON object", where=where, do="write one JSON object on each line")
                yield where, row


def _parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError("reading Parquet needs the package `pyarrow`", where=str(file), do=EXTRA) from error
    number = 0
    for batch in ParquetFile(file).iter_batches(batch_size=256):
        for row in batch.to_pylist():
            number += 1
            yield f"{file}:{number}", row


def _require(row: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    for option in ("messages",) if "messages" in known else ("ask", "answer"):
        if (column := known.get(option)) and column not in row:
            raise DataError(f"there is no column '{column}'", where=where,
                            do=f"{near(column, row)}; say which it is with `{option}`")


def _example(row: Mapping[str, Any], known: Mapping[str, Any], where: str, number: int) -> Example:
    """One row.

    Raises:
        DataError: it cannot be used.
    """
    if column := known.get("messages"):
        turns = row[column]
        first = turns[0] if isinstance(turns, list) and turns else None
        plain = {"conversations" if isinstance(first, Mapping) and "from" in first else "messages": turns}
    else:
        plain = {"prompt": row[known["ask"]], "response": row.get(known.get("answer", ""))}
    meta = {k: row[k] for k in known.get("meta", ()) if row.get(k) is not None}
    for option in ("domain", "difficulty"):
        if (value := _at(row, known.get(option))) is not None:
            meta[option] = value
    return dialogue(plain | {"id": f"row-{number}"} | meta, where, number, ROLES)


def _at(row: Mapping[str, Any], path: str | None) -> Any:
    """The value at a path (the first of a list), or what stands after `=`."""
    if path is None or path.startswith("="):
        return path and path[1:]
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return (value[0] if value else None) if isinstance(value, list) else value
