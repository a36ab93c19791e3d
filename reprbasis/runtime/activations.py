"""Harvested activations: shards on disk, the tokens they belong to, and statistics per site.

Shapes: S sites, N tokens, D width of a site, Q sequences.

Layout of the artifact::

    shards/shard-00000.safetensors   one tensor [n, D] per site, the rows of this shard's tokens in order
    shards/shard-00000.json          number of tokens, hash
    tensors.safetensors              tokens (ids, positions, sequences, flags), statistics

Held-out sequences are kept as tokens only: evaluation runs the model on them anyway.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import DataError, SiteError
from ..interfaces.artifact import Artifact
from ..interfaces.tokens import TokenSequence
from ..sites import Site, select

if TYPE_CHECKING:
    from ..registry import Registry


@dataclass(frozen=True)
class SiteStats:
    """First and second moments per site, over training tokens, each beginning once (see `beginnings`) and without position 0,
    where attention sinks live.

    Args:
        count: tokens that entered.
        mean: site -> [D].
        power: site -> mean of |x|^2.
    """

    count: int
    mean: Mapping[Site, Tensor]
    power: Mapping[Site, float]

    def variance(self, site: Site) -> float:
        """Total variance: mean of |x - mean|^2."""
        return max(self.power[site] - float(self.mean[site].double().square().sum()), 0.0)


@dataclass(frozen=True)
class TokenTable:
    """What is known of every token: parallel [N] tensors, and the key and split of every sequence.

    Args:
        ids, positions, sequences: [N] int64.
        flags: name -> [N] bool.
        keys: [Q] example keys, indexed by sequence.
        held_out: [Q] bool.
        extra: further model inputs (images), the entries of all sequences present, one after the other.
        owners: name of an extra -> [n] sequence of each of its entries.
        contents: [N] int64, see `TokenSequence.contents`; None: the ids.
    """

    ids: Tensor
    positions: Tensor
    sequences: Tensor
    flags: Mapping[str, Tensor]
    keys: Sequence[str]
    held_out: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    owners: Mapping[str, Tensor] = field(default_factory=dict)
    contents: Tensor | None = None

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def shown(self) -> Tensor:
        """[N] what each token shows the model: equal for equal tokens and, of an image's tokens, for equal images."""
        return self.ids if self.contents is None else self.contents

    @cached_property
    def bounds(self) -> Tensor:
        """[M + 1] where each of the M sequences present starts, and the end."""
        starts = torch.nonzero(torch.diff(self.sequences, prepend=self.sequences.new_tensor([-1]))).flatten()
        return torch.cat([starts, starts.new_tensor([len(self)])])

    @cached_property
    def repeats(self) -> Tensor:
        """[N] bool: tokens whose text so far begins an earlier sequence of the table (see `beginnings`).

        Position 0 never counts as repeated: it is the attention sink of its sequence, and a dictionary that met it once would
        get it wrong everywhere.
        """
        known: set[int] = set()
        out = []
        for _, span in self.spans():
            states = list(beginnings(self.shown[span].tolist()))
            out += [place > 0 and state in known for place, state in enumerate(states)]
            known.update(states)
        return torch.tensor(out, dtype=torch.bool)

    def having(self, flags: Sequence[str]) -> Tensor:
        """[N] bool: tokens that carry all of these flags; `!name`: those that do not carry it.

        Raises:
            DataError: there is no such flag, or no token has all.
        """
        out = torch.ones(len(self), dtype=torch.bool)
        for name in flags:
            known = self.flags.get(name.removeprefix("!"))
            if known is None:
                raise DataError(f"no token has the flag '{name.removeprefix('!')}'", do=f"known: {', '.join(sorted(self.flags))}")
            out &= known != name.startswith("!")
        if not bool(out.any()):
            raise DataError(f"no token is at once {', '.join(flags)}", do="ask for fewer flags, or harvest other text")
        return out

    def sequence(self, index: int, span: slice) -> TokenSequence:
        """The tokens of a sequence, found at `span`, with all that the model needs to run on them."""
        extra = {name: self.extra[name][owner == index] for name, owner in self.owners.items() if bool((owner == index).any())}
        return TokenSequence(self.ids[span], {k: v[span] for k, v in self.flags.items()}, index, self.keys[index], extra=extra,
                             contents=None if self.contents is None else self.contents[span])

    def spans(self) -> Iterator[tuple[int, slice]]:
        """(sequence, its slice of the table), in order."""
        edges = self.bounds.tolist()
        for a, b in pairwise(edges):
            yield int(self.sequences[a]), slice(a, b)


@dataclass(frozen=True)
class Activations(Artifact):
    """Activations of several sites on the same tokens.

    Args:
        sites: in execution order.
        folder: where the shards lie.
        shards: tokens in each shard, in order; shard i is `shards/shard-0000i.safetensors`.
        table: training tokens, in shard order.
        held: held-out tokens (no activations stored).
        stats: moments per site.
        origin: model facts, corpus, settings; JSON values.
    """

    type: ClassVar[str] = "activations"
    sites: tuple[Site, ...]
    folder: Path
    shards: tuple[int, ...]
    table: TokenTable
    held: TokenTable
    stats: SiteStats
    origin: Mapping[str, Any] = field(default_factory=dict)
    keep: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    @property
    def tokens(self) -> int:
        """Training tokens with activations."""
        return len(self.table)

    @property
    def rows_total(self) -> int:
        """Rows there are to train on: tokens times sites."""
        return len(self.table) * len(self.sites)

    def select(self, selectors: str | Sequence[str | Site]) -> tuple[Site, ...]:
        """Resolve selectors against the harvested sites."""
        return select(selectors, self.sites)

    def read(self, site: Site, shard: int, rows: slice | None = None) -> Tensor:
        """[n, D] raw activations of one site in one shard, in storage dtype."""
        if site not in self.stats.mean:
            raise SiteError(f"site '{site}' was not harvested", do=f"harvested: {', '.join(map(str, self.sites))}")
        with safe_open(self.folder / shard_name(shard), framework="pt") as f:
            part = f.get_slice(str(site))
            return part[rows] if rows is not None else part[:]  # type: ignore[no-any-return]

    def fresh(self) -> Tensor:
        """[n] rows of the token table that measurements use: neither repeated beginnings nor position 0."""
        return torch.nonzero(~self.table.repeats & (self.table.positions > 0)).flatten()

    def take(self, site: Site, rows: Tensor) -> Tensor:
        """[n, D] raw activations of one site at these rows of the token table [n], in storage dtype and in that order."""
        order = rows.argsort(stable=True)
        wanted, parts, base = rows[order], [], 0
        for shard, size in enumerate(self.shards):
            here = wanted[(wanted >= base) & (wanted < base + size)]
            if len(here):
                first, last = int(here[0]) - base, int(here[-1]) - base
                parts.append(self.read(site, shard, slice(first, last + 1))[here - base - first])
            base += size
        return torch.cat(parts)[order.argsort()]

    def sequences(self, split: Literal["train", "held-out"], most_tokens: int | None = None) -> list[TokenSequence]:
        """Whole token sequences of a split, in order, to run the model on again; stops before exceeding `most_tokens`."""
        table = self.table if split == "train" else self.held
        out: list[TokenSequence] = []
        total = 0
        for index, span in table.spans():
            total += span.stop - span.start
            if most_tokens is not None and total > most_tokens and out:
                break
            out.append(table.sequence(index, span))
        if not out:
            raise DataError(f"the activations hold no {split} tokens",
                            do="harvest more examples, or raise held_out" if split == "held-out" else "harvest more examples")
        return out

    def unseen(self, sequences: Sequence[TokenSequence]) -> list[Tensor]:
        """For each sequence, [T] bool: tokens whose text so far is not the beginning of any training sequence.

        With causal attention a token's activations depend on the tokens up to it alone. Where a held-out dialogue begins as the
        training dialogues do (the same system prompt), it repeats their activations and tests nothing.
        """
        known = {state for _, span in self.table.spans() for state in beginnings(self.table.shown[span].tolist())}
        shown = [s.ids if s.contents is None else s.contents for s in sequences]
        return [torch.tensor([state not in known for state in beginnings(s.tolist())]) for s in shown]

    def tensors(self) -> Mapping[str, Tensor]:
        """Token tables and moments; the activations themselves are in the shards."""
        out: dict[str, Tensor] = {"held_out": self.table.held_out}
        for prefix, table in (("train", self.table), ("held", self.held)):
            out |= {f"{prefix}/ids": table.ids, f"{prefix}/positions": table.positions, f"{prefix}/sequences": table.sequences}
            out |= {f"{prefix}/flag/{k}": v for k, v in table.flags.items()}
            out |= {f"{prefix}/extra/{k}": v for k, v in table.extra.items()}
            out |= {f"{prefix}/owner/{k}": v for k, v in table.owners.items()}
            out |= {} if table.contents is None else {f"{prefix}/contents": table.contents}
        return out | {f"mean/{s}": m for s, m in self.stats.mean.items()}

    def facts(self) -> Mapping[str, Any]:
        """Sites, shards, keys, powers, origin."""
        return {"sites": [str(s) for s in self.sites], "shards": list(self.shards), "keys": list(self.table.keys),
                "count": self.stats.count, "power": {str(s): p for s, p in self.stats.power.items()},
                "origin": dict(self.origin)}

    def files(self) -> Mapping[str, Path]:
        """The shards."""
        return {shard_name(i): self.folder / shard_name(i) for i in range(len(self.shards))}

    @classmethod
    def attach(cls, folder: Path, facts: Mapping[str, Any], registry: Registry) -> Self:
        """Open without reading the shards."""
        from ..artifacts.store import TENSORS, read_tensors

        tensors = read_tensors(folder / TENSORS)
        tables = []
        for prefix in ("train", "held"):
            flags, extra, owners = ({k.rpartition("/")[2]: v for k, v in tensors.items() if k.startswith(f"{prefix}/{group}/")}
                                    for group in ("flag", "extra", "owner"))
            tables.append(TokenTable(tensors[f"{prefix}/ids"], tensors[f"{prefix}/positions"],
                                     tensors[f"{prefix}/sequences"], flags, facts["keys"], tensors["held_out"],
                                     extra, owners, tensors.get(f"{prefix}/contents")))
        sites = tuple(Site.parse(s) for s in facts["sites"])
        stats = SiteStats(facts["count"], {s: tensors[f"mean/{s}"] for s in sites},
                          {s: facts["power"][str(s)] for s in sites})
        return cls(sites, folder, tuple(facts["shards"]), tables[0], tables[1], stats, facts["origin"])

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], registry: Registry) -> Self:
        """Activations are always attached to their folder."""
        raise DataError("activations are opened with reprbasis.load(folder), not from tensors alone")


def beginnings(shown: Iterable[int]) -> Iterator[int]:
    """A hash of each beginning of a token sequence: of shown[:1], shown[:2], ... (see `TokenTable.shown`).

    With causal attention equal beginnings give equal activations, bit for bit but for the order of sums: dialogues that share
    a system prompt repeat the same rows hundreds of times.
    """
    state = 0
    for token in shown:
        state = hash((state, token))
        yield state


def shard_name(index: int) -> str:
    """Relative path of a shard."""
    return f"shards/shard-{index:05d}.safetensors"
