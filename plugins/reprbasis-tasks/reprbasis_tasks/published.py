"""Task `json`: pairs in the format that Marks et al. 2024 (feature-circuits) and its successors publish."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from reprbasis.errors import DataError
from reprbasis.interfaces.task import ContrastPair, Split, Task
from reprbasis.kits.templates import Draft, Misfit, Words, align

from .config import JsonConfig

log = logging.getLogger(__name__)
FIELDS = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")


@dataclass(frozen=True)
class Row:
    """One row of a file."""

    clean: str
    corrupt: str
    answer: str
    wrong: str
    case: str


class Published(Task[JsonConfig]):
    """The rows of a file as they stand, without repetitions, those that do not align left out.

    Published train and test files share most of their prompts. Here no prompt is in two splits: rows that share a prompt,
    directly or through other rows, stay together, and rows of `test_path` that share a prompt with `path` are left out. With
    `test_path` a fifth of `path` is the validation split; without it, a fifth each are validation and test. Role: `end`. A row is
    not mirrored if both answers stand in the clean prompt and neither in the corrupted one (names exchanged for random ones).
    """

    def pairs(self, tokenizer: Any, split: Split, seed: int) -> Iterator[ContrastPair]:
        """Rows of one number of tokens, shuffled.

        Raises:
            DataError: a file cannot be read, a row lacks a field, or no row of the split aligns.
        """
        words = Words(tokenizer)
        rows = self._split(split)
        length = self.config.length or self._common_length(words)
        Random(f"{split}/{seed}").shuffle(rows)
        faults: Counter[str] = Counter()
        given = 0
        for row in rows:
            if len(words.ids(row.clean)) != length:
                faults["of another length"] += 1
                continue
            try:
                pair = align(self._draft(row), words)
            except Misfit as fault:
                faults[str(fault)] += 1
                continue
            given += 1
            yield pair
        told = ", ".join(f"{count} {fault}" for fault, count in faults.most_common())
        log.info("%s (%s): %d of %d rows%s", self.config.path.name, split, given, len(rows), f"; left out: {told}" * bool(told))
        if not given:
            raise DataError(f"none of {len(rows)} rows of the {split} split aligns" + (f" ({told})" if told else ""),
                            where=str(self.config.path), do="set length, or use other rows or another tokenizer")

    def _draft(self, row: Row) -> Draft:
        """The whole prompts are one slot, so they may differ anywhere."""
        named = [a.strip() in row.corrupt for a in (row.answer, row.wrong)]
        apart = [a.strip() in row.clean for a in (row.answer, row.wrong)]
        return Draft("{prompt}", {"prompt": row.clean}, {"prompt": row.corrupt}, row.answer, row.wrong, row.case,
                     mirrored=not (all(apart) and not any(named)))

    def _common_length(self, words: Words) -> int:
        return Counter(len(words.ids(row.clean)) for row in read(self.config.path)).most_common(1)[0][0]

    def _split(self, split: Split) -> list[Row]:
        rows = read(self.config.path)
        if self.config.test_path is None:
            return [row for row, part in zip(rows, parts(rows), strict=True) if part == split]
        if split != "test":
            return [row for row, part in zip(rows, parts(rows), strict=True) if (part == "validation") == (split == "validation")]
        known = {side for row in rows for side in (row.clean, row.corrupt)}
        found = read(self.config.test_path)
        fresh = [row for row in found if not {row.clean, row.corrupt} & known]
        log.info("%s: %d of %d rows share a prompt with %s and are left out", self.config.test_path.name, len(found) - len(fresh),
                 len(found), self.config.path.name)
        return fresh


def parts(rows: Sequence[Row]) -> list[Split]:
    """The split of each row; rows that share a prompt are in one split. Groups are dealt out in the order of the file."""
    leader: dict[str, str] = {}

    def lead(prompt: str) -> str:
        while (above := leader.setdefault(prompt, prompt)) != prompt:
            leader[prompt] = leader[above]
            prompt = above
        return prompt

    for row in rows:
        leader[lead(row.clean)] = lead(row.corrupt)
    order = {group: i % 5 for i, group in enumerate(dict.fromkeys(lead(row.clean) for row in rows))}
    names: dict[int, Split] = {3: "validation", 4: "test"}
    return [names.get(order[lead(row.clean)], "train") for row in rows]


def read(path: Path) -> list[Row]:
    """Rows of a JSON list or of JSON lines, each once.

    Raises:
        DataError: with the file and the row.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the file cannot be read: {error}", where=str(path), do="check the path") from None
    rows = []
    for where, value in _values(text, path):
        lacking = [f for f in FIELDS if not isinstance(value, dict) or f not in value]
        if lacking:
            raise DataError(f"the row lacks {', '.join(lacking)}", where=where, do=f"give {', '.join(FIELDS)}")
        clean, corrupt, answer, wrong = (str(value[f]) for f in FIELDS)
        rows.append(Row(clean, corrupt, answer, wrong, str(value.get("case", ""))))
    if not rows:
        raise DataError("the file has no rows", where=str(path), do="give a JSON list or one JSON object per line")
    return list(dict.fromkeys(rows))


def _values(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        if text.lstrip().startswith("["):
            yield from ((f"{path}: row {i + 1}", row) for i, row in enumerate(json.loads(text)))
            return
        line = 0
        for line, content in enumerate(text.splitlines(), 1):
            if content.strip():
                yield f"{path}:{line}", json.loads(content)
    except json.JSONDecodeError as error:
        at = error.lineno if text.lstrip().startswith("[") else line
        raise DataError(f"this is not JSON: {error.msg}", where=f"{path}:{at}", do="mend the line") from None
