"""Harvest: activations of many sites from one forward per batch, in resumable shards.

Sequences are packed (block-diagonal attention, positions restart), so every dialogue is forwarded as if alone, without the
cost of padding; the forward stops at the deepest site and never computes logits. One shard is one group of sequences of about
`shard_tokens` tokens. A shard that exists is not computed again, and all randomness is fixed by `seed`: an interrupted harvest
ends with the same bytes.

Cost: one forward to the deepest site, 2 * (parameters up to there) FLOPs a token, plus tokens * sites * D * (bytes of the
storage dtype) written to disk.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..artifacts.manifest import hash_file, write_json
from ..artifacts.store import read_tensors, write_tensors
from ..errors import DataError, NumericsError, SiteError, UserError
from ..interfaces.corpus import Corpus, CorpusContext
from ..interfaces.model import ModelAdapter
from ..interfaces.reporter import Progress, Silent
from ..interfaces.tokens import Example, TokenBatch, TokenSequence
from ..sites import Site
from . import distributed
from .activations import Activations, SiteStats, TokenTable, beginnings, shard_name

log = logging.getLogger(__name__)
Layout = Literal["dialogues", "blocks"]
DTYPES: Mapping[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def harvest(model: ModelAdapter[Any], corpus: Corpus[Any] | Iterable[Example] | Activations, *,
            sites: str | Sequence[str | Site] = "*", tokens: int = 100_000, held_out: float = 0.1, max_tokens: int = 1024,
            row_tokens: int = 512, rows: int = 8, layout: Layout = "dialogues", isolate: bool = True, shard_tokens: int = 4096,
            dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16", seed: int = 0, folder: Path | None = None,
            progress: Progress | None = None) -> Activations:
    """Run the model over a corpus and keep the activations of `sites`.

    Under torchrun the shards are divided over the processes, which share `folder`; the result is the same, bit for bit.

    Args:
        model: the network.
        corpus: a corpus component, any iterable of examples, or earlier activations, whose sequences are run again (at other
            sites or in another layout) and keep their split into training and held-out.
        sites: selectors, see `reprbasis.sites.select`.
        tokens: stop after this many tokens (training and held-out together); fewer if the corpus ends.
        held_out: share of sequences (every k-th) whose tokens are kept for evaluation only.
        max_tokens: longer sequences are cut here.
        row_tokens, rows: packed batches have at most `rows` rows of `row_tokens` tokens (a longer sequence gets a row of its
            own length).
        layout, isolate: what the model sees together, see `RowLayout`. Anything but dialogues in isolation is for comparison:
            it is how activations are often collected. Held-out sequences are whole dialogues in any case.
        shard_tokens: tokens of a shard, about.
        dtype: how activations are stored. bfloat16 keeps the range of float32 with 8 bits of precision.
        seed: passed to the corpus.
        folder: where shards and unfinished work are kept; None: a temporary directory that lives as long as the result.
        progress: where to report.

    Raises:
        DataError: the corpus gives no example or too few for a held-out part.
        NumericsError: an activation is NaN or infinite; names the site and the sequence.
        SiteError: a selector does not fit the model.
    """
    chosen = model.info.select(sites if isinstance(sites, str) else list(sites))
    if chosen[0] in model.info.vision:
        raise SiteError(f"{chosen[0]} has one entry a patch, and activations hold one row a token",
                        do="harvest embed (image tokens carry the projector's output there), or capture it with model.forward")
    keep = tempfile.TemporaryDirectory(prefix="reprbasis-") if folder is None else None
    folder = Path(keep.name) if keep is not None else folder
    assert folder is not None
    progress = progress or Silent()
    every = round(1 / held_out) if held_out > 0 else 0
    context = CorpusContext(model, folder, progress)
    apart: set[int] | None = None  # sequences that stay held out
    if isinstance(corpus, Activations):
        apart = set(corpus.held.sequences.tolist())
        stream = _again(corpus, max_tokens)
    else:
        stream = _sequences(model, corpus, max_tokens=max_tokens, seed=seed, context=context)
    laid = RowLayout(layout, isolate, row_tokens)
    keys: list[str] = []
    dialogues = 0
    train: list[TokenSequence] = []
    held: list[TokenSequence] = []
    shards: list[int] = []
    moments = _Moments(chosen)
    known: set[int] = set()
    total, pending = 0, 0
    group: list[TokenSequence] = []

    with distributed.grid() as ranks, progress.task("harvest", total=tokens, unit="tokens") as task:
        if ranks.count > 1 and keep is not None:
            raise UserError(f"{ranks.count} processes work together, and each has a folder of its own",
                            do="give harvest a folder that all of them share")

        def flush() -> None:
            nonlocal group, pending
            if group:
                index = len(shards)
                path = folder / shard_name(index)
                inner = _news(group, known)
                if index % ranks.count == ranks.rank:
                    _shard(model, group, inner, chosen, path, row_tokens, rows, DTYPES[dtype])
                shards.append(pending)
                train.extend(group)
                group, pending = [], 0
                task.update(min(total, tokens))

        def name(sequence: TokenSequence) -> TokenSequence:
            keys.append(sequence.key)
            return replace(sequence, sequence=len(keys) - 1)

        def add(sequences: Iterable[TokenSequence]) -> None:
            nonlocal pending
            for sequence in sequences:
                group.append(name(sequence))
                pending += len(sequence)
                if pending >= shard_tokens:
                    flush()

        for sequence in stream:
            if total >= tokens:
                break
            sequence = sequence.cut(tokens - total)
            dialogues += 1
            total += len(sequence)
            if (every and dialogues % every == 0) if apart is None else sequence.sequence in apart:
                held.append(name(sequence))
            else:
                add(laid.add(sequence))
        add(laid.end())
        flush()
        ranks.barrier()
    for index in range(len(shards)):
        moments.add(read_tensors(_sums_path(folder / shard_name(index))))
    if not train:
        raise DataError("the corpus gave no example", do="check the path, filters and limit of the corpus")
    if total < tokens:
        log.warning("the corpus ended after %d of %d tokens", total, tokens)
    split = torch.zeros(len(keys), dtype=torch.bool)
    split[[s.sequence for s in held]] = True
    origin = {"model": model_facts(model), "tokens": total, "sequences": len(keys), "max_tokens": max_tokens,
              "layout": layout, "isolate": isolate, "dtype": dtype, "counts": json.loads(json.dumps(context.facts)),
              "corpus": corpus.full_name if isinstance(corpus, Corpus) else "examples"}
    if isinstance(corpus, Activations):
        origin |= {name: corpus.origin[name] for name in ("counts", "corpus") if name in corpus.origin}
    return Activations(chosen, folder, tuple(shards), _table(train, keys, split), _table(held, keys, split),
                       moments.stats(), origin, keep)


class RowLayout:
    """Lays dialogues out for the model, in order, without losing a token.

    Args:
        layout: `dialogues` keeps each whole; `blocks` cuts the stream of all dialogues every `length` tokens.
        isolate: whether each dialogue (or, in blocks, each piece of one) is a sequence of its own, which sees itself alone and
            begins at position 0; otherwise all that share a row are one sequence: attention leaks from dialogue to dialogue.
        length: tokens of a row.

    `dialogues` in isolation is the default and equals forwarding them one by one; `blocks` without isolation is the usual
    block training, `dialogues` without it packing with the mask forgotten (Li et al. 2025, arXiv 2506.07691).
    """

    def __init__(self, layout: Layout, isolate: bool, length: int) -> None:
        self.layout, self.isolate, self.length = layout, isolate, length
        self._open: list[TokenSequence] = []
        self._rows = 0

    def add(self, sequence: TokenSequence) -> Iterator[TokenSequence]:
        """The sequences that are complete now."""
        if self.layout == "dialogues" and self.isolate:
            yield sequence
            return
        if self.layout == "blocks" and sequence.extra:
            raise DataError(f"sequence '{sequence.key}' has extra inputs, which cannot be cut into blocks",
                            do="use layout: dialogues, isolate: true")
        room = self.length - sum(map(len, self._open))
        if self.layout == "dialogues" and len(sequence) > room:
            yield from self.end()
        piece = 0
        while self.layout == "blocks" and len(sequence) >= room:
            self._open.append(replace(_part(sequence, 0, room), key=f"{sequence.key}#{piece}"))
            yield from self.end()
            sequence, room, piece = _part(sequence, room, len(sequence)), self.length, piece + 1
        if len(sequence):
            self._open.append(replace(sequence, key=f"{sequence.key}#{piece}") if self.layout == "blocks" else sequence)

    def end(self) -> Iterator[TokenSequence]:
        """What is left."""
        ready, self._open = self._open, []
        if ready and self.isolate:
            yield from ready
        elif ready:
            yield _join(ready, f"row-{self._rows}")
            self._rows += 1


def _part(sequence: TokenSequence, start: int, stop: int) -> TokenSequence:
    return replace(sequence, ids=sequence.ids[start:stop], flags={k: v[start:stop] for k, v in sequence.flags.items()},
                   offsets=None if sequence.offsets is None else sequence.offsets[start:stop],
                   contents=None if sequence.contents is None else sequence.contents[start:stop])


def _join(sequences: Sequence[TokenSequence], key: str) -> TokenSequence:
    if with_more := [s.key for s in sequences if s.extra]:
        raise DataError(f"sequence '{with_more[0]}' has extra inputs, which cannot share a row",
                        do="use layout: dialogues, isolate: true")
    names = sorted({name for s in sequences for name in s.flags})
    flags = {name: torch.cat([s.flags.get(name, torch.zeros(len(s), dtype=torch.bool)) for s in sequences]) for name in names}
    return TokenSequence(torch.cat([s.ids for s in sequences]), flags, key=key)


def _news(sequences: Sequence[TokenSequence], known: set[int]) -> Tensor:
    """[n] bool: tokens that count for the moments: not at position 0, and not the beginning of a sequence already `known`."""
    out = []
    for sequence in sequences:
        shown = sequence.ids if sequence.contents is None else sequence.contents
        states = list(beginnings(shown.tolist()))
        out += [place > 0 and state not in known for place, state in enumerate(states)]
        known.update(states)
    return torch.tensor(out)


def model_facts(model: ModelAdapter[Any]) -> dict[str, Any]:
    """What identifies a model in an artifact."""
    info = model.info
    return {"component": model.full_name, "config": model.config.model_dump(mode="json"), "family": info.family,
            "revision": info.revision, "n_layers": info.n_layers, "d_model": info.d_model, "vocab": info.vocab}


def _sequences(model: ModelAdapter[Any], corpus: Corpus[Any] | Iterable[Example], *, max_tokens: int, seed: int,
               context: CorpusContext) -> Iterator[TokenSequence]:
    examples = iter(corpus.examples(seed=seed, context=context) if isinstance(corpus, Corpus) else corpus)
    first = 0
    while chunk := list(islice(examples, 64)):
        yield from model.tokenize(chunk, max_tokens=max_tokens, first=first)
        first += len(chunk)


def _again(activations: Activations, max_tokens: int) -> Iterator[TokenSequence]:
    if (activations.origin.get("layout", "dialogues"), activations.origin.get("isolate", True)) != ("dialogues", True):
        raise DataError("these activations hold rows of several dialogues, which cannot be taken apart",
                        do="take activations harvested with layout: dialogues, isolate: true")
    held = activations.sequences("held-out") if len(activations.held) else []
    for sequence in sorted(activations.sequences("train") + held, key=lambda s: s.sequence):
        yield sequence.cut(max_tokens)


def _table(sequences: Sequence[TokenSequence], keys: Sequence[str], held_out: Tensor) -> TokenTable:
    names = sorted({name for s in sequences for name in s.flags})
    empty = [torch.zeros(0, dtype=torch.long)]
    flags = {name: torch.cat([s.flags.get(name, torch.zeros(len(s), dtype=torch.bool)) for s in sequences]) for name in names}
    extra, owners = {}, {}
    for name in sorted({name for s in sequences for name in s.extra}):
        found = [(s.sequence, s.extra[name]) for s in sequences if name in s.extra]
        extra[name] = torch.cat([value for _, value in found])
        owners[name] = torch.cat([torch.full((len(value),), index) for index, value in found])
    known = any(s.contents is not None for s in sequences)
    contents = torch.cat([s.ids if s.contents is None else s.contents for s in sequences]) if known else None
    return TokenTable(torch.cat([s.ids for s in sequences] or empty),
                      torch.cat([torch.arange(len(s)) for s in sequences] or empty),
                      torch.cat([torch.full((len(s),), s.sequence) for s in sequences] or empty), flags, keys, held_out,
                      extra, owners, contents)


class _Moments:
    """Sums in float64; one set per shard is stored beside it, so that resuming adds the same numbers in the same order."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = sites
        self.count = 0.0
        self.sum: dict[Site, Tensor] = {}
        self.square: dict[Site, float] = dict.fromkeys(sites, 0.0)

    def add(self, sums: Mapping[str, Tensor]) -> None:
        self.count += float(sums["count"])
        for site in self.sites:
            self.sum[site] = self.sum.get(site, 0) + sums[f"sum/{site}"]
            self.square[site] += float(sums[f"square/{site}"])

    def stats(self) -> SiteStats:
        n = max(self.count, 1.0)
        return SiteStats(int(self.count), {s: self.sum[s] / n for s in self.sites}, {s: self.square[s] / n for s in self.sites})


def _shard(model: ModelAdapter[Any], sequences: Sequence[TokenSequence], inner: Tensor, sites: tuple[Site, ...], path: Path,
           row_tokens: int, rows: int, dtype: torch.dtype) -> None:
    """Compute one shard and its sums unless they are there."""
    record = path.with_suffix(".json")
    if record.is_file() and json.loads(record.read_text())["sha256"] == hash_file(path).sha256:
        return
    first = {s.sequence: i for i, s in enumerate(sequences)}
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    owners: list[Tensor] = []
    length = max(row_tokens, max(map(len, sequences)))
    for batch in TokenBatch.pack(sequences, length=length, rows=rows, pad_id=model.pad_id):
        result = model.forward(batch.to(model.device), capture=sites, stop_at=sites[-1], logits="none")
        owners.append(torch.stack([batch.sequences[batch.mask], batch.positions[batch.mask]]))
        for site in sites:
            parts[site].append(result.sites[site][batch.mask.to(model.device)].cpu())
    owner = torch.cat(owners, 1)
    # packing moves sequences between rows; bring the tokens back into the order of `sequences`
    rank = torch.tensor([first[s] for s in owner[0].tolist()])
    order = torch.argsort(rank * (length + 1) + owner[1])
    tensors: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {"count": inner.sum().double()}
    for site in sites:
        x = torch.cat(parts.pop(site))[order]
        body = x[inner].float()
        sums[f"sum/{site}"] = body.sum(0, dtype=torch.float64)
        sums[f"square/{site}"] = body.square_().sum(dtype=torch.float64)
        if not torch.isfinite(x.sum(dtype=torch.float64)):
            bad = int(owner[0][order][~torch.isfinite(x).all(-1)][0])
            raise NumericsError(f"activations are NaN or infinite in sequence {bad} ('{sequences[first[bad]].key}')",
                                where=str(site),
                                do="check the model's weights and dtype (float16 overflows where float32 does not)")
        tensors[str(site)] = x.to(dtype)
    write_tensors(path, tensors)
    write_tensors(_sums_path(path), sums)
    write_json(record, {"tokens": len(inner), "sha256": hash_file(path).sha256})


def _sums_path(path: Path) -> Path:
    return path.with_suffix(".sums")
