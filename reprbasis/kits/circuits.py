"""Running a model with some nodes at their own value and all others ablated, under many masks at once.

A node is a latent, or the reconstruction error (index K), of a site and of a row of the mask (a token position, a role, or all
positions together). With x what comes in at the site, z = encode(x), p and q the masks of latents and error, and mu and e the
values that ablated nodes take:

    x* = decode(mu + p (z - mu)) + q (x - decode(z)) + (1 - q) e

With every node on x* = x, with none x* = decode(mu) + e, whatever comes in. Codes and error are those of the value that comes in
during the run, not of the clean run: a node that is on passes on what the nodes before it let through. Derivatives are exact.

Shapes: B prompts, T tokens, D width, K latents, C latents that take part, M masks run together, R rows of a mask, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import DataError, UserError
from ..interfaces.finder import Circuit, Setup
from ..interfaces.metric import Metric, Targets
from ..interfaces.model import ForwardResult, ModelAdapter, Start
from ..interfaces.scorer import ContrastBatch
from ..interfaces.tokens import TokenBatch
from ..runtime.basis import Basis
from ..sites import Site
from .nodes import Means, Places, repeated, stream_before

_FINAL = Site("final")
Masks = Mapping[Site, Tensor]


def common_prefix(batches: Iterable[ContrastBatch]) -> int:
    """Leading tokens that all prompts, clean and corrupted, share, but not a whole prompt: nothing there can carry anything."""
    known: Tensor | None = None
    for item in batches:
        for side in (item.clean, item.corrupt):
            if side is None:
                continue
            for ids, real in zip(side.shown().cpu(), side.mask.cpu(), strict=True):
                row = ids[real]
                if known is None:
                    known = row[:-1]
                size = min(len(known), len(row) - 1)
                same = known[:size] == row[:size]
                known = known[:size] if bool(same.all()) else known[:int(same.int().argmin())]
    return 0 if known is None else len(known)


def places_of(setup: Setup, batches: Sequence[ContrastBatch], *, fill: bool = False) -> Places:
    """What the rows of a mask are on these prompts; `fill`: of the ablation values, per token where masks are shared."""
    if setup.index == "role":
        return Places("role", setup.roles)
    return Places.of("token" if fill else setup.index, batches)


def open_rows(places: Places, setup: Setup, item: ContrastBatch) -> Tensor:
    """[B, T] (or [1, T] where all prompts agree) row of each token; -1: the token is left alone."""
    rows = torch.where(item.clean.positions >= setup.protect, places.index(item), -1)
    return rows[:1] if bool((rows == rows[:1]).all()) else rows


@dataclass(frozen=True)
class Coder:
    """Some latents of a basis at one site.

    Args:
        encode: x [..., D] -> codes [..., C].
        directions: [C, D].
        offset: [D] decode(0).
    """

    basis: Basis
    site: Site
    latents: Tensor | None
    directions: Tensor
    offset: Tensor
    gather: bool

    @classmethod
    def of(cls, basis: Basis, site: Site, latents: Tensor | None = None) -> Coder:
        """The latents `latents` [C], or all.

        Raises:
            CapabilityError: the decoder is not affine.
        """
        directions = basis.directions(site)
        offset = basis.decode(site, directions.new_zeros(basis.d_dict))
        if latents is None:
            return cls(basis, site, None, directions, offset, gather=False)
        small = basis.dictionary.subset(latents)
        if small is not None:
            return cls(basis.with_dictionary(small), site, latents, directions[latents], offset, gather=False)
        return cls(basis, site, latents, directions[latents], offset, gather=True)

    def encode(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., C]."""
        z = self.basis.encode(self.site, x)
        return z[..., self.latents] if self.gather else z


@dataclass(frozen=True)
class NodeEdit:
    """The `Edit` of this module, for M masks at once: rows of the batch are M times the B prompts.

    Args:
        site: where.
        coder: the latents that take part; all others are ablated.
        mask: [M, R, C + 1] in [0, 1], the error last.
        rows: [B, T] or [1, T], see `open_rows`.
        fill: [B, T, C] or [1, T, C], mu.
        base: [B, T, D] or [1, T, D], decode(mu) over all latents.
        error: the same shape, e; None for 0.
        keep_error: True or False where q is the same everywhere, None to read it from the mask.
        each: if not 0, the number of prompts B, and masks are [M B, R, C + 1]: one for each prompt, whose rows all agree.
    """

    site: Site
    coder: Coder = field(repr=False)
    mask: Tensor = field(repr=False)
    rows: Tensor = field(repr=False)
    fill: Tensor = field(repr=False)
    base: Tensor = field(repr=False)
    error: Tensor | None = field(repr=False, default=None)
    keep_error: bool | None = None
    each: int = 0

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        """[M B, T, D] -> the same."""
        many = self.mask.shape[0] // max(self.each, 1)
        incoming = x.view(many, -1, *x.shape[1:]).to(self.base.dtype)
        z = self.coder.encode(incoming)
        at = self.rows.clamp_min(0)
        # [M, B or 1, T, C + 1]
        keep = self.mask[:, at[0]].view(many, self.each, *x.shape[1:2], -1) if self.each else self.mask[:, at]
        codes = keep[..., :-1] * (z - self.fill)
        if self.keep_error is False:
            new = self.base + codes @ self.coder.directions
            new = new if self.error is None else new + self.error
        else:
            share = keep[..., -1:] if self.keep_error is None else 1.0
            new = self.base + (codes - share * z) @ self.coder.directions + share * (incoming - self.coder.offset)
            if self.error is not None and self.keep_error is None:
                new = new + (1 - share) * self.error
        new = torch.where((self.rows >= 0)[..., None], new, incoming)
        return new.view_as(x).to(x.dtype)


@dataclass(frozen=True)
class _Watch:
    """Keeps what comes in at a site."""

    site: Site
    seen: dict[Site, Tensor] = field(repr=False)

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        self.seen[self.site] = x
        return x


@dataclass
class _Prompts:
    """A batch made ready."""

    item: ContrastBatch
    rows: Tensor
    fill_rows: Tensor
    start: Start
    model: Tensor
    logits: Tensor
    targets: Targets
    paired: dict[Site, tuple[Tensor, Tensor]] = field(default_factory=dict)  # codes [B, T, C], base + error [B, T, D] each
    tiles: dict[int, tuple[TokenBatch, Start, Targets]] = field(default_factory=dict)


class Runner:
    """A model, a basis and the prompts of a task, ready to be run under many masks.

    What does not depend on the masks is computed once: the stream up to the first site, the values of ablated nodes, the metric
    of the unchanged model. A run starts at the first site; where the metric reads the answers' logits alone (`answers_only`) only
    those rows of the unembedding are used. Cost of a run: M forwards from the first site, and 4 M B T D C FLOPs a site.

    Args:
        model: with gradients, if masks are to be learned.
        basis: with an affine decoder.
        setup: sites, ablation, error policy, how masks are indexed.
        batches: the prompts.
        metric: one number a prompt.
        fill: values of ablated nodes; measured on these batches' corrupted prompts if not given (unused for `corrupt`).
        latents: `active`: those that are active, or not 0 when ablated, somewhere on these prompts; all others count as off.
            `all`: every latent. Or site -> [C]. With the error off the restriction changes nothing but what is on; with the error
            on, a latent that starts to fire only under ablation counts as error.
        whole: always compute the logits of the whole vocabulary.

    Raises:
        DataError: there are no batches, or no corrupted prompts where the ablation needs them.
    """

    def __init__(self, model: ModelAdapter[Any], basis: Basis, setup: Setup, batches: Sequence[ContrastBatch],
                 metric: Metric[Any], *, fill: Means | None = None,
                 latents: Literal["active", "all"] | Mapping[Site, Tensor] = "active", whole: bool = False) -> None:
        if not batches:
            raise DataError("there are no prompts", do="give at least one batch")
        lone = any(item.corrupt is None for item in batches)
        if lone and (setup.ablation == "corrupt" or (setup.ablation == "mean" and fill is None)):
            raise DataError(f"ablation '{setup.ablation}' needs corrupted prompts",
                            do="use a task with contrast, or ablation: zero")
        self.model, self.basis, self.setup, self.metric = model, basis, setup, metric
        self.places, self.fill_places = places_of(setup, batches), places_of(setup, batches, fill=True)
        self.dtype = basis.normaliser.mean.dtype
        self._start = stream_before(model.info, setup.sites[0]) or model.info.sites[0]
        self._answers = None if whole else self._answer_ids(batches)
        self._logits: Literal["last", "all"] = "last"
        active = {s: torch.zeros(len(self.places), basis.d_dict, dtype=torch.bool, device=model.device) for s in setup.sites}
        self.prompts = [self._prepare(item, active) for item in batches]
        self.fill = fill if fill is not None else self._measure(active)
        if setup.ablation == "mean" and len(self.fill.counts) < len(self.fill_places):
            raise DataError(f"the values of ablated nodes have {len(self.fill.counts)} rows, the prompts {len(self.fill_places)}",
                            do="evaluate the circuit on prompts of the task it was found on")
        for site in setup.sites:
            if setup.ablation == "mean":
                nonzero = self.fill.codes[site] != 0
                active[site] |= nonzero.any(0) if setup.index == "shared" else nonzero[:len(self.places)]
        self.active = active
        self.coders: dict[Site, Coder] = {}
        for site in setup.sites:
            chosen = None if latents == "all" else active[site].any(0).nonzero()[:, 0] if latents == "active" else latents[site]
            self.coders[site] = Coder.of(basis, site, chosen)
        self._base = {s: self._mean_base(s) for s in setup.sites} if setup.ablation != "corrupt" else {}
        if setup.ablation == "corrupt":
            self._pair()

    # -- making ready --------------------------------------------------------------------------------------------------

    def _answer_ids(self, batches: Sequence[ContrastBatch]) -> Tensor | None:
        if not self.metric.answers_only:
            return None
        found = [t.flatten() for item in batches for t in (item.targets.answer, item.targets.wrong) if t is not None]
        return torch.unique(torch.cat(found).clamp_min(0)) if found else None

    def _prepare(self, item: ContrastBatch, active: dict[Site, Tensor]) -> _Prompts:
        rows, fill_rows = open_rows(self.places, self.setup, item), open_rows(self.fill_places, self.setup, item)
        wanted = {self._start, *self.setup.sites, *([_FINAL] if self._answers is not None else [])}
        result = self.model.forward(item.clean, capture=wanted, logits=self._logits)
        try:
            value = self.metric(result, item.clean, item.targets)
        except DataError:
            if self._logits == "all":
                raise
            self._logits = "all"
            result = self.model.forward(item.clean, capture=wanted)
            value = self.metric(result, item.clean, replace(item.targets, reference=result.logits))
        short = None
        targets = item.targets if self._logits == "last" else replace(item.targets, reference=result.logits)
        if self._answers is not None:
            mapped = Targets(*(None if t is None else torch.where(t >= 0, torch.searchsorted(self._answers, t.clamp_min(0)), -1)
                               for t in (targets.answer, targets.wrong)))
            short = self._short(result.sites[_FINAL], item.clean)
            again = self.metric(ForwardResult({}, short, item.clean), item.clean, mapped)
            assert result.logits is not None
            rounding = 4 * torch.finfo(result.logits.dtype).eps * float(result.logits.abs().max())
            if torch.allclose(again.double(), value.double(), rtol=1e-3, atol=max(1e-3, rounding)):
                targets, value = mapped, again  # in float32 even where the model's logits are coarser
            else:  # logits that are not linear in the final vector (a soft cap)
                self._answers = None
        for site in self.setup.sites:  # what is active when every node is on
            self._mark(active[site], self.basis.encode(site, result.sites[site]), rows)
        if self.setup.error == "none":
            for site, (z, _) in self._states(item.clean, fill_rows).items():
                self._mark(active[site], z, rows)
        logits = result.logits if self._answers is None else short
        assert logits is not None
        start = Start(self._start, result.sites[self._start])
        return _Prompts(item, rows, fill_rows, start, value.detach(), logits, targets)

    @staticmethod
    def _mark(active: Tensor, z: Tensor, rows: Tensor) -> None:
        where = rows.expand(z.shape[:2])
        used = where >= 0
        hits = torch.zeros(active.shape, dtype=torch.long, device=z.device).index_add_(0, where[used], (z[used] != 0).long())
        active |= hits > 0

    def _short(self, final: Tensor, batch: TokenBatch) -> Tensor:
        """[B, 1, A] logits of the answers."""
        assert self._answers is not None
        out = self.model.unembedding()
        last = final[torch.arange(len(final), device=final.device), batch.last()]
        last = last.to(torch.promote_types(last.dtype, torch.float32))
        logits = last @ out.weight[self._answers].to(last.dtype).T
        return (logits if out.bias is None else logits + out.bias[self._answers].to(last.dtype))[:, None]

    def _states(self, batch: TokenBatch, rows: Tensor) -> dict[Site, tuple[Tensor, Tensor]]:
        """Codes and errors with every node on: the plain run, or, without errors, the run that sees reconstructions alone."""
        if self.setup.error != "none":
            return self.basis.states(self.model.forward(batch, capture=self.setup.sites, logits="none"))
        seen: dict[Site, Tensor] = {}
        edits: list[Any] = []
        for site in self.setup.sites:
            edits += [_Watch(site, seen), _Rebuild(site, self.basis, rows)]
        self.model.forward(batch, edits=edits, logits="none")
        return self.basis.states(ForwardResult(seen, None, batch))

    def _measure(self, active: dict[Site, Tensor]) -> Means:
        at, device = self.fill_places, self.model.device
        codes = {s: torch.zeros(len(at), self.basis.d_dict, dtype=torch.float64, device=device) for s in self.setup.sites}
        errors = {s: torch.zeros(len(at), self.basis.d_in, dtype=torch.float64, device=device) for s in self.setup.sites}
        counts = torch.zeros(len(at), dtype=torch.float64, device=device)
        if self.setup.ablation != "zero":
            for p in self.prompts:
                assert p.item.corrupt is not None
                counts += at.total(torch.ones_like(p.item.corrupt.ids), p.item)
                for site, (z, e) in self._states(p.item.corrupt, p.fill_rows).items():
                    self._mark(active[site], z, p.rows)
                    codes[site] += at.total(z, p.item)
                    errors[site] += at.total(e, p.item)
        share = counts.clamp_min(1)[:, None]
        return Means(at, {s: (v / share).to(self.dtype) for s, v in codes.items()},
                     {s: (v / share).to(self.dtype) for s, v in errors.items()}, counts)

    def _mean_base(self, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """Means of the latents that take part [F, C], decode(mu) [F, D] and e [F, D]."""
        mu = self.fill.codes[site].to(self.model.device, self.dtype)
        latents = self.coders[site].latents
        return (mu if latents is None else mu[:, latents], self.basis.decode(site, mu),
                self.fill.errors[site].to(self.model.device, self.dtype))

    def _pair(self) -> None:
        for p in self.prompts:
            assert p.item.corrupt is not None
            for site, (z, e) in self._states(p.item.corrupt, p.fill_rows).items():
                latents = self.coders[site].latents
                p.paired[site] = (z if latents is None else z[..., latents],
                                  torch.stack([self.basis.decode(site, z), e.to(self.dtype)]))

    # -- running -------------------------------------------------------------------------------------------------------

    @property
    def n(self) -> int:
        """Number of prompts."""
        return sum(len(p.model) for p in self.prompts)

    @property
    def model_values(self) -> Tensor:
        """[N] metric of the unchanged model."""
        return torch.cat([p.model for p in self.prompts])

    def edits(self, prompts: _Prompts, masks: Masks, *, each: bool = False) -> list[NodeEdit]:
        """One edit a site for masks [M, R, C + 1]; see `run`."""
        out = []
        fixed = {"node": None, "own": True, "mean": False, "none": False}[self.setup.error]
        at = prompts.fill_rows.clamp_min(0)
        for site in self.setup.sites:
            if self.setup.ablation == "corrupt":
                mu, (base, error) = prompts.paired[site]
            else:
                mu, base, error = (t[at] for t in self._base[site])
            out.append(NodeEdit(site, self.coders[site], masks[site], prompts.rows, mu, base,
                                None if self.setup.error in ("none", "own") else error, fixed, len(prompts.model) if each else 0))
        return out

    def run(self, index: int, masks: Masks, *, grad: bool = False, each: bool = False) -> tuple[Tensor, Tensor]:
        """Run the prompts of batch `index` under M masks at once.

        Args:
            index: which batch.
            masks: site -> [M, R, C + 1] in [0, 1].
            grad: keep the graph, so that the result can be differentiated with respect to the masks.
            each: masks are [M B, R, C + 1], one for each prompt: differentiated, they give a derivative for each prompt.

        Returns:
            metric [M, B], and logits at the last token [M, B, V] (the answers' alone if the metric reads no others).
        """
        p = self.prompts[index]
        many = masks[self.setup.sites[0]].shape[0] // (len(p.model) if each else 1)
        if each and len(p.rows) > 1:
            raise DataError("the prompts of the batch have different layouts", do="make batches with reprbasis.batches")
        batch, start, targets = self._tiled(p, many)
        short = self._answers is not None
        result = self.model.forward(batch, edits=self.edits(p, masks, each=each), start=start, grad=grad,
                                    capture=[_FINAL] if short else (), logits="none" if short else self._logits)
        with torch.set_grad_enabled(grad):
            if short:
                result = ForwardResult({}, self._short(result.sites[_FINAL], batch), batch)
            assert result.logits is not None
            value = self.metric(result, batch, targets).view(many, -1)
            logits = result.logits
            last = logits[:, 0] if logits.shape[1] == 1 else logits[torch.arange(len(logits)), batch.last()]
            return value, last.view(many, value.shape[1], -1)

    def values(self, masks: Masks, *, rows: int = 64) -> Tensor:
        """[M, N] metric of every prompt under M masks [M, R, C + 1]; at most about `rows` prompts in one forward."""
        return self.outputs(masks, rows=rows)[0]

    def outputs(self, masks: Masks, *, rows: int = 64) -> tuple[Tensor, list[Tensor]]:
        """`values`, and for each batch the logits [M, B, V] at the last token."""
        many = masks[self.setup.sites[0]].shape[0]
        out, logits = [], []
        for index, p in enumerate(self.prompts):
            size = max(1, rows // len(p.model))
            parts = [self.run(index, {s: m[first:first + size] for s, m in masks.items()}) for first in range(0, many, size)]
            out.append(torch.cat([v for v, _ in parts]))
            logits.append(torch.cat([l for _, l in parts]))
        return torch.cat(out, dim=1), logits

    def _tiled(self, p: _Prompts, many: int) -> tuple[TokenBatch, Start, Targets]:
        if many not in p.tiles:
            p.tiles.clear()
            p.tiles[many] = repeated(p.item.clean, many), Start(p.start.site, p.start.value.repeat(many, 1, 1)), Targets(*(
                None if t is None else t.repeat(many, *[1] * (t.ndim - 1))
                for t in (p.targets.answer, p.targets.wrong, p.targets.reference)))
        return p.tiles[many]

    # -- masks ---------------------------------------------------------------------------------------------------------

    def dense(self, circuits: Sequence[Circuit]) -> dict[Site, Tensor]:
        """Masks [M, R, C + 1] of circuits; nodes outside the latents that take part are dropped.

        Raises:
            UserError: a circuit is for other sites, or has another number of rows.
        """
        rows = len(self.places)
        out: dict[Site, list[Tensor]] = {s: [] for s in self.setup.sites}
        for circuit in circuits:
            if set(circuit.masks) != set(self.setup.sites):
                raise UserError(f"the circuit has the sites {', '.join(map(str, circuit.masks))}, the run "
                                f"{', '.join(map(str, self.setup.sites))}", do="evaluate it with its own setup")
            for site, mask in circuit.masks.items():
                table = (mask[None] if mask.ndim == 1 else mask).to(self.model.device)
                if len(table) > rows and bool(table[rows:].any()):
                    raise UserError(f"the circuit has {len(table)} rows at {site}, the prompts {rows}",
                                    do="evaluate it on prompts of the task it was found on, or use masks per role")
                table = table[:rows]
                table = torch.cat([table, table.new_zeros(rows - len(table), table.shape[1])])
                latents = self.coders[site].latents
                out[site].append(table if latents is None else torch.cat([table[:, latents], table[:, -1:]], 1))
        return {s: torch.stack(m).to(self.dtype) for s, m in out.items()}

    def full(self, *, latents: bool, errors: bool) -> dict[Site, Tensor]:
        """One mask [1, R, C + 1] with all latents, and all errors, on or off."""
        out = {}
        for site, coder in self.coders.items():
            shape = 1, len(self.places), len(coder.directions) + 1
            mask = torch.full(shape, float(latents), dtype=self.dtype, device=self.model.device)
            mask[..., -1] = float(errors)
            out[site] = mask
        return out


@dataclass(frozen=True)
class _Rebuild:
    """Replaces tokens by their reconstruction, where rows [B, T] are not -1."""

    site: Site
    basis: Basis = field(repr=False)
    rows: Tensor = field(repr=False)

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        new = self.basis.decode(self.site, self.basis.encode(self.site, x)).to(x.dtype)
        return torch.where((self.rows >= 0)[..., None], new, x)


def fill_of(circuit: Circuit) -> Means | None:
    """The values of ablated nodes that a circuit carries; None if it carries none."""
    if not circuit.fill:
        return None
    rows, setup = len(next(iter(circuit.fill.values()))), circuit.setup
    places = Places("role", setup.roles) if setup.index == "role" else Places("token", tuple(map(str, range(rows))))
    return Means(places, circuit.fill, circuit.error_fill, torch.ones(rows))
