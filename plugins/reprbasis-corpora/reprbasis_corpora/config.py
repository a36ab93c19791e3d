"""Options of the corpora."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from reprbasis.component import ComponentConfig
from reprbasis.config import Selection, Use
from reprbasis.config.report import complaint
from reprbasis.errors import near


class ChatConfig(ComponentConfig):
    """Dialogues as JSON lines."""

    path: Path | None = None
    """JSON-lines file of dialogues; null: the prompt set that comes with this package."""

    limit: int | None = Field(None, ge=1)
    """Use at most this many dialogues (after filtering, shuffling and skipping); null: all."""

    skip: int = Field(0, ge=0)
    """Leave out this many dialogues at the front (after filtering and shuffling): with `limit`, parts that share nothing."""

    shuffle: bool = False
    """Put the dialogues in a random order that depends on the run's seed alone."""

    domains: tuple[str, ...] = ()
    """Keep only dialogues whose `domain` is one of these; empty: all."""

    system: str | None = Field(None, min_length=1)
    """A system message to put before every dialogue that has none."""

    roles: Mapping[str, Literal["system", "user", "assistant"]] = Field(default_factory=dict)
    """Further role names in the file and what they mean, for example `{tool: user}`."""

    generate: bool = False
    """Drop the given answers and let the model answer every user turn itself."""

    max_new: int = Field(128, ge=1)
    """Longest answer, in tokens (`generate` only)."""

    temperature: float = Field(0.0, ge=0)
    """Sampling temperature; 0 takes the likeliest token each time (`generate` only)."""

    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with at least this probability (`generate` only)."""

    batch: int = Field(32, ge=1)
    """Dialogues answered together (`generate` only); part of the result: other batches round differently."""


class TextConfig(ComponentConfig):
    """Plain text files."""

    path: Path
    """A text file, or a folder of them; files are read in the order of their names."""

    files: str = Field("**/*.txt", min_length=1)
    """Which files of a folder are read, as a glob (`**` stands for any depth)."""

    unit: Literal["file", "paragraph", "line"] = "file"
    """What one example is; paragraphs are separated by blank lines. Blank units are left out."""

    limit: int | None = Field(None, ge=1)
    """Use at most this many examples (after shuffling and skipping); null: all."""

    skip: int = Field(0, ge=0)
    """Leave out this many examples at the front (after shuffling)."""

    shuffle: bool = False
    """Put the examples in a random order that depends on the run's seed alone."""


class MixConfig(ComponentConfig):
    """Several corpora in fixed proportions, without repetitions."""

    sources: tuple[Annotated[Selection, Use("corpus")], ...] = Field(min_length=1)
    """The corpora to mix."""

    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Relative numbers of dialogues of the sources, while they last; null: equal."""

    dedup: Literal["exact", "bounded", "none"] = "exact"
    """Drop dialogues that share an n-gram with an earlier one: `exact` (8 bytes for each n-gram kept), `bounded` (a Bloom filter
    of `dedup_bytes`; it drops a few dialogues too many, and says how many to expect), or not at all.
    """

    dedup_bytes: int = Field(2**28, ge=1024)
    """Size of the filter (`bounded` only); 8 bytes for each n-gram keep its errors below 1e-10 a n-gram, 4 bytes below 1e-6."""

    ngram: int = Field(20, ge=2)
    """Units of an n-gram."""

    unit: Literal["word", "char", "token"] = "word"
    """What an n-gram counts: words between white space, characters, or the model's tokens."""

    short: Literal["keep", "whole"] = "keep"
    """Dialogues too short for any n-gram: keep them all, or drop those that are equal to an earlier one as a whole."""

    limit: int | None = Field(None, ge=1)
    """Give at most this many dialogues; null: all."""

    workers: int = Field(0, ge=0)
    """Processes that hash n-grams; 0: none but the main one. Has no influence on the result."""

    @model_validator(mode="after")
    def _as_many_weights(self) -> MixConfig:
        if self.weights is not None and len(self.weights) != len(self.sources):
            raise complaint(
                f"there are {len(self.sources)} sources and {len(self.weights)} weights", "give each source its weight")
        return self


class HubConfig(ComponentConfig):
    """A data set of the Hugging Face hub, or its files."""

    dataset: str | None = Field(None, min_length=1)
    """Name from the table (`gsm8k`), which knows id and columns, or any id of the hub (`owner/name`); null: only `path`."""

    path: Path | None = None
    """Read this file, or all files of this folder in the order of their names (.jsonl, .json.gz, .parquet), and not the hub."""

    subset: str | None = None
    """Configuration of the data set; null: that of the table, or its default."""

    split: str | None = None
    """Split; null: that of the table, or `train`."""

    revision: str | None = None
    """Commit or tag of the data set on the hub; null: the newest, which may change."""

    messages: str | None = None
    """Column of whole dialogues: a list of turns with `role` and `content` (or `from` and `value`)."""

    ask: str | None = None
    """Column of the question, where there is no column of dialogues."""

    answer: str | None = None
    """Column of the answer."""

    domain: str | None = None
    """Column that becomes `domain`; a path such as `label.cate_ability_en` reaches into a column."""

    difficulty: str | None = None
    """Column that becomes `difficulty`."""

    where: Mapping[str, str | int | bool] = Field(default_factory=dict)
    """Keep only rows with these values, for example `{language: English}`."""

    limit: int | None = Field(None, ge=1)
    """Use at most this many dialogues; null: all."""

    @model_validator(mode="after")
    def _known(self) -> HubConfig:
        if self.dataset is None and self.path is None:
            raise complaint("neither dataset nor path is given", "name a data set, or give a file")
        known = dataset_entry(self.dataset or "")
        if self.dataset is not None and "/" not in self.dataset and not known:
            raise complaint(f"there is no data set '{self.dataset}' in the table", near(self.dataset, datasets_table())
                            + ", or write the id of the hub: owner/name")
        if not (known or self.messages or self.ask):
            raise complaint("which columns hold the dialogues is not known", "give messages, or ask and answer")
        return self


@lru_cache
def datasets_table() -> Mapping[str, Mapping[str, Any]]:
    """Name -> id, subset, split and columns of the data sets known by name."""
    found: Mapping[str, Mapping[str, Any]] = json.loads((files(__package__) / "data" / "datasets.json").read_text("utf-8"))
    return found


def dataset_entry(name: str) -> Mapping[str, Any]:
    """The entry of that name or id of the hub; empty when there is none."""
    table = datasets_table()
    return table.get(name) or next((entry for entry in table.values() if entry["id"] == name), {})
