"""Corpus `unlearning`: TOFU (Maini et al. 2024), MUSE (Shi et al. 2024) and WMDP (Li et al. 2024), from the hub or from files.

Questions come as dialogues, passages as texts. What the metrics need further is in `meta` under the data set's own names
(`paraphrased_answer`, `perturbed_answer`, `choices`, ...).
"""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from reprbasis.errors import DataError, UserError, near
from reprbasis.interfaces.corpus import Corpus, CorpusContext
from reprbasis.interfaces.tokens import Example, Message

from .config import UnlearningConfig

LETTERS = "ABCDEFGHIJ"


def table() -> dict[str, dict[str, Any]]:
    """Name -> id on the hub, subset, split, and columns of each kind of row."""
    found: dict[str, dict[str, Any]] = json.loads(files(__package__).joinpath("data/datasets.json").read_text("utf-8"))
    return found


class UnlearningCorpus(Corpus[UnlearningConfig]):
    """See the module."""

    def examples(self, *, seed: int = 0, context: CorpusContext | None = None) -> Iterator[Example]:
        """Rows in their order; `key` is the number of the row.

        Raises:
            UserError: the data set is not known.
            DataError: it cannot be read, or a row lacks a column.
        """
        known = table()
        if self.config.dataset not in known:
            raise UserError(f"there is no data set '{self.config.dataset}' here", do=near(self.config.dataset, known))
        entry = known[self.config.dataset]
        for number, (where, row) in enumerate(self._rows(entry)):
            if self.config.limit is not None and number == self.config.limit:
                return
            yield example(row, entry["rows"], where, number)

    def _rows(self, entry: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.config.path is not None:
            yield from _local(str(self.config.path))
            return
        subset, split = self.config.subset or entry.get("subset"), self.config.split or entry["split"]
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise DataError(f"reading '{entry['id']}' from the hub needs the package `datasets`", where=entry["id"],
                            do="pip install 'reprbasis-editbench[hub]', or give the path of its rows") from error
        try:
            rows = load_dataset(entry["id"], subset, split=split, revision=self.config.revision, streaming=True)
            for number, row in enumerate(rows):
                yield f"{entry['id']}:{subset}:{split}:{number}", row
        except Exception as error:  # whatever the hub, the network or the format brings up; it is told, not hidden
            raise DataError(f"the data set cannot be read: {type(error).__name__}: {error}", where=entry["id"],
                            do="check the network, subset and split, and whether its terms must be accepted on the hub first; or "
                               "give the path of its rows") from error


def example(row: Mapping[str, Any], kinds: list[dict[str, Any]], where: str, number: int) -> Example:
    """A row in the columns of the first kind that it has."""
    kind = next((k for k in kinds if all(row.get(column) is not None for column in k["columns"])), None)
    if kind is None:
        wanted = " or ".join(", ".join(k["columns"]) for k in kinds)
        raise DataError(f"the row has the columns {', '.join(row)}, not {wanted}", where=where, do="check subset and data set")
    ask, *answer = (row[column] for column in kind["columns"])
    meta = {name: row[name] for name in kind.get("meta", ()) if row.get(name) is not None}
    key = f"row-{number}"
    if not answer:
        return Example(text=str(ask), key=key, origin=where, meta=meta)
    if "choices" in meta:
        ask = "\n".join([str(ask), *(f"{LETTERS[i]}. {text}" for i, text in enumerate(meta["choices"]))])
        answer = [LETTERS[int(answer[0])]]
    return Example(messages=(Message("user", str(ask)), Message("assistant", str(answer[0]))), key=key, origin=where, meta=meta)


def _local(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=path, do="give a JSON or JSON lines file") from None
    if text.lstrip().startswith("["):
        given = [(path, row) for row in _json(text, path)]
    else:
        given = [(f"{path}:{n}", _json(line, f"{path}:{n}")) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not given:
        raise DataError("the file has no rows", where=path, do="give one JSON object on each line")
    yield from given


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"this is not JSON ({error.msg} at column {error.colno})", where=where,
                        do="write one JSON object on each line") from None
