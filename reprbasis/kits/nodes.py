"""Nodes of a basis on a task, and what happens when they take another value. For scorers, finders and their evaluation.

A node is a latent, or the reconstruction error, of one site at one place: all tokens of a prompt together, one position,
or one role. In the last dimension of a tensor over nodes, index K is the error.

    x = decode(z) + e             a site's value, its codes z and its error e
    z' = z_base + share (z - z_base),   e' = e_base + share_K (e - e_base)        share in [0, 1], one number for each node

Two kinds of run: `Nodes.resume` puts a value into one site of the otherwise unchanged clean run and lets the rest of the
model follow; `Nodes.edits` masks nodes of all sites in one run, where every site encodes what really reaches it. With
`share` 1 everywhere the run equals the unchanged model exactly.

Padding, and protected tokens (a beginning-of-sequence token, or the first `protect` positions), are never touched: their
baseline is their own value.

Shapes: B batch, T tokens, D width, K latents, P places, R positions of a role, n replicas of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..errors import DataError, ReprBasisError, SiteError
from ..interfaces.metric import Metric
from ..interfaces.model import Edit, ForwardResult, ModelAdapter, ModelInfo, Replace, Start
from ..interfaces.scorer import ContrastBatch
from ..interfaces.tokens import TokenBatch
from ..runtime.basis import Basis
from ..sites import Site

PlaceKind: TypeAlias = Literal["shared", "token", "role"]
BaselineKind: TypeAlias = Literal["corrupt", "mean", "zero"]
REST = "rest"
"""The role of tokens that have none."""


@dataclass(frozen=True)
class Places:
    """Which tokens make up one node: all tokens of a prompt, each position, or each role.

    Args:
        kind: `shared` (over tokens), `token` or `role`.
        names: of the P places: `all`; `0`, `1`, ... (position within the sequence); or the roles and, last, `rest`, for
            tokens without one. A token with several roles belongs to the last.
    """

    kind: PlaceKind = "shared"
    names: tuple[str, ...] = ("all",)

    @classmethod
    def of(cls, kind: PlaceKind, batches: Sequence[ContrastBatch]) -> Places:
        """The places that occur in these batches.

        Raises:
            DataError: roles are asked for and the batches have none.
        """
        if kind == "shared":
            return cls()
        if kind == "token":
            return cls(kind, tuple(map(str, range(1 + max(int(item.clean.positions.max()) for item in batches)))))
        names = tuple(dict.fromkeys(name for item in batches for name in item.roles))
        if not names:
            raise DataError("these batches have no roles", do="use a task that names roles, or index: token")
        return cls(kind, (*names, REST))

    def __len__(self) -> int:
        return len(self.names)

    def index(self, item: ContrastBatch) -> Tensor:
        """[B, T] place of each token, -1 on padding (and at positions beyond the last place)."""
        at, real = item.clean.positions, item.clean.mask
        if self.kind == "shared":
            found = torch.zeros_like(at)
        elif self.kind == "token":
            found = torch.where(at < len(self), at, -1)
        else:
            found = torch.full_like(at, len(self) - 1)
            for number in range(len(self) - 1):
                if (where := item.roles.get(self.names[number])) is not None:
                    found[(at[:, :, None] == where.to(at.device)[:, None, :]).any(-1)] = number
        return torch.where(real, found, -1)

    def spread(self, values: Tensor, item: ContrastBatch, *, outside: float = 0.0) -> Tensor:
        """[P, ...] -> [B or 1, T, ...]: each token gets its place's value; 1 where all rows are alike.

        Tokens without a place get `outside`. Differentiable.
        """
        index = self.index(item)
        if bool((index == index[:1]).all()):
            index = index[:1]
        out = values[index.clamp_min(0)]
        none = (index < 0).view(*index.shape, *[1] * (values.ndim - 1))
        return torch.where(none, torch.full_like(out, outside), out) if bool(none.any()) else out

    def total(self, values: Tensor, item: ContrastBatch) -> Tensor:
        """[B, T, ...] -> [P, ...] sum over the tokens and rows of each place, in float64."""
        index = self.index(item)
        where = index >= 0
        out = torch.zeros(len(self), *values.shape[2:], dtype=torch.float64, device=values.device)
        return out.index_add_(0, index[where], values[where].double())


@dataclass(frozen=True)
class Means:
    """Mean codes and errors at each place, over the corrupted prompts of a task (over the clean ones where there are none).

    Args:
        places: where means are taken; `token` for templates of one length, `role` otherwise.
        codes: site -> [P, K].
        errors: site -> [P, D].
        counts: [P] tokens that each mean rests on.
    """

    places: Places
    codes: Mapping[Site, Tensor]
    errors: Mapping[Site, Tensor]
    counts: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], places: PlaceKind = "token") -> Means:
        """Exact means (sum over count, in float64). Cost: one forward for each batch."""
        at = Places.of(places, batches)
        codes: dict[Site, Tensor] = {}
        errors: dict[Site, Tensor] = {}
        counts = torch.zeros(len(at), dtype=torch.float64, device=model.device)
        for item in batches:
            side = item.clean if item.corrupt is None else item.corrupt
            counts += at.total(torch.ones_like(side.ids), item)
            result = model.forward(side, capture=basis.sites, logits="none")
            for site in basis.sites:
                z, e = _split(basis, site, result[site])
                codes[site] = codes.get(site, 0) + at.total(z, item)
                errors[site] = errors.get(site, 0) + at.total(e, item)
        share = counts.clamp_min(1)[:, None]
        kind = basis.normaliser.mean.dtype
        return cls(at, {s: (v / share).to(kind) for s, v in codes.items()}, {s: (v / share).to(kind) for s, v in errors.items()},
                   counts)


Baseline: TypeAlias = "Literal['corrupt', 'zero'] | Means"


def baseline_of(kind: BaselineKind, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], *,
                places: PlaceKind = "token") -> Baseline:
    """What `Nodes.of` takes, from the name of a baseline; `mean` runs the model over the batches once."""
    return Means.of(model, basis, batches, places) if kind == "mean" else kind


@dataclass(frozen=True)
class State:
    """One site of the clean run and its baseline.

    Args:
        site: which.
        x: [B, T, D] its value.
        codes: [B, T, K]; base_codes: [B, T, K].
        error: [B, T, D]; base_error: [B, T, D]. Where a token is protected or padding, the baseline equals the clean value.
    """

    site: Site
    x: Tensor
    codes: Tensor
    error: Tensor
    base_codes: Tensor
    base_error: Tensor

    def at(self, share: Tensor, error: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes and error when latents keep `share` of their own value, the error `error` of its own (default: as much).

        Args:
            share: broadcastable to [B, T, K]; error: broadcastable to [B, T, D].
        """
        return (torch.lerp(self.base_codes, self.codes, share.to(self.codes)),
                torch.lerp(self.base_error, self.error, (share if error is None else error).to(self.error)))


@dataclass(frozen=True)
class Keep:
    """An `Edit`: every node of a site keeps `share` of its own value and takes the rest from its baseline.

    Codes and error are those of the value that reaches the site. Works on n replicas of the batch too ([n * B, T, D]): then
    `share` may begin with a dimension n.

    Args:
        share: [K + 1], or anything that broadcasts to [B, T, K + 1] or [n, B, T, K + 1]; may require gradients.
        codes: [B, T, K], error: [B, T, D]: the baseline (broadcastable).
        open: [B, T] bool: tokens that may change.
    """

    site: Site
    basis: Basis = field(repr=False)
    share: Tensor
    codes: Tensor
    error: Tensor
    open: Tensor

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        rows = x.view(-1, *self.open.shape, x.shape[-1])
        z = self.basis.encode(self.site, rows)
        share = self.share.to(z.dtype)
        own = self.basis.decode(self.site, z)
        kept = torch.lerp(self.codes.to(z.dtype).expand_as(z), z, share[..., :-1].expand_as(z))
        new = self.basis.decode(self.site, kept) - own  # exactly 0 where every latent is kept
        new = new + (1 - share[..., -1:]) * (self.error.to(z.dtype) - (rows.to(z.dtype) - own))
        return torch.where(self.open[..., None], rows + new.to(x.dtype), rows).view_as(x)


class Nodes:
    """One batch of a task seen through a basis: clean values, baselines, and runs with other values.

    Keeps [B, T, D] for every site of the basis (and for the corrupted run); codes are made on request, site by site.

    Attributes:
        item: the batch.
        result: the clean run, with logits.
        logits: `last` if the metric needs no others, else `all`.
        open: [B, T] bool: tokens that may change.
    """

    def __init__(self, model: ModelAdapter[Any], basis: Basis, item: ContrastBatch, result: ForwardResult,
                 other: Mapping[Site, Tensor], baseline: Baseline, error: Baseline, opened: Tensor,
                 logits: Literal["all", "last"]) -> None:
        self.model, self.basis, self.item, self.result, self.open, self.logits = model, basis, item, result, opened, logits
        self._other, self._baseline, self._error = other, baseline, error

    @property
    def streams(self) -> list[Site]:
        """The sites from which runs can be resumed, for the sites of the basis."""
        return _streams(self.model.info, self.basis.sites)

    @classmethod
    @torch.no_grad()
    def of(cls, model: ModelAdapter[Any], basis: Basis, item: ContrastBatch, baseline: Baseline = "corrupt", *,
           error: Baseline | None = None, metric: Metric[Any] | None = None, protect: int = 0) -> Nodes:
        """Run the clean batch and, for a corrupted baseline, the corrupted one. Cost: one or two forwards.

        Args:
            model: runs them.
            basis: its sites are looked at.
            item: the batch.
            baseline: what nodes are set to: their value in the `corrupt` run at the same token, `zero`, or `Means`.
            error: baseline of the error nodes, if another one: `zero` is a model that sees only what the dictionary explains.
            metric: to find out whether logits at the last token are enough.
            protect: positions at the beginning that stay as they are; a special token at position 0 always does.

        Raises:
            DataError: a corrupted baseline is asked for and the batch has no corrupted side, or one of another shape.
            SiteError: a site of the basis is not one of the model's sites with one entry a token.
        """
        if apart := [s for s in basis.sites if s not in model.info.widths]:
            raise SiteError(f"'{apart[0]}' has no entry for each token, so it has no nodes here", do="use sites of the decoder")
        item = ContrastBatch(item.clean.to(model.device), None if item.corrupt is None else item.corrupt.to(model.device),
                             item.targets, item.roles)
        error = baseline if error is None else error
        other: Mapping[Site, Tensor] = {}
        if "corrupt" in (baseline, error):
            if item.corrupt is None or item.corrupt.shape != item.clean.shape:
                raise DataError("the corrupted baseline needs a corrupted prompt as long as the clean one",
                                do="use a task with contrast, or baseline: mean or zero")
            other = model.forward(item.corrupt, capture=basis.sites, logits="none").sites
        logits: Literal["all", "last"] = "all"
        result = model.forward(item.clean, capture={*basis.sites, *_streams(model.info, basis.sites)})
        if metric is not None and result.logits is not None and _reads_last(metric, result, item):
            last = result.logits[torch.arange(len(result.logits)), item.clean.last()][:, None]
            logits, result = "last", replace(result, logits=last.clone())
        first = item.clean.positions == 0
        opened = item.clean.mask & ~(first & item.clean.flag("special")) & (item.clean.positions >= protect)
        return cls(model, basis, item, result, other, baseline, error, opened, logits)

    @property
    def n(self) -> int:
        """Examples B."""
        return int(self.item.clean.ids.shape[0])

    def measure(self, metric: Metric[Any], result: ForwardResult | None = None) -> Tensor:
        """[n, B] the metric of a run over n replicas of the batch (default: the clean run, n = 1)."""
        result = self.result if result is None else result
        assert result.logits is not None
        clean, targets = self.item.clean, self.item.targets
        replicas = result.logits.view(-1, self.n, *result.logits.shape[1:])
        return torch.stack([metric(ForwardResult({}, logits, clean), clean, targets) for logits in replicas])

    @torch.no_grad()
    def state(self, site: Site, x: Tensor | None = None) -> State:
        """Codes, error and baselines of one site, where `x` [B, T, D] reaches it (default: the clean value).

        Not kept by `self`: it is as large as [B, T, K].
        """
        x = self.result[site] if x is None else x
        z, e = _split(self.basis, site, x)
        base_z, base_e = self.base(site)
        here = self.open[..., None]
        return State(site, x, z, e, torch.where(here, base_z.to(z.dtype), z), torch.where(here, base_e.to(e.dtype), e))

    @torch.no_grad()
    def base(self, site: Site) -> tuple[Tensor, Tensor]:
        """Baseline codes and errors of a site, broadcastable to [B, T, K] and [B, T, D]."""
        other = _split(self.basis, site, self._other[site]) if site in self._other else None

        def pick(baseline: Baseline, which: int, width: int) -> Tensor:
            if isinstance(baseline, Means):
                return baseline.places.spread((baseline.codes, baseline.errors)[which][site], self.item)
            if baseline == "zero" or other is None:
                return torch.zeros(1, 1, width, dtype=self.basis.normaliser.mean.dtype, device=self.model.device)
            return other[which]

        return pick(self._baseline, 0, self.basis.d_dict), pick(self._error, 1, self.basis.d_in)

    def value(self, site: Site, codes: Tensor, error: Tensor) -> Tensor:
        """[..., T, D] the site's value with these codes and this error, in the model's dtype."""
        return (self.basis.decode(site, codes) + error).to(self.result[site].dtype)

    def edits(self, share: Mapping[Site, Tensor]) -> list[Keep]:
        """Edits for `model.forward` that mask nodes of several sites in one run; see `Keep`.

        Baselines are made once, so keep the edits and replace their `share` in a loop.

        Args:
            share: site -> how much of their own value nodes keep, broadcastable to [B, T, K + 1]; see `Places.spread`.
        """
        return [Keep(site, self.basis, value, *self.base(site), self.open) for site, value in share.items()]

    def run(self, edits: Sequence[Edit], *, grad: bool = False, capture: Sequence[Site] = (), n: int = 1) -> ForwardResult:
        """The clean prompts, n replicas of them, with edits."""
        return self.model.forward(repeated(self.item.clean, n), edits=edits, grad=grad, capture=capture, logits=self.logits)

    def resume(self, site: Site, x: Tensor, *, edits: Sequence[Edit] = (), capture: Sequence[Site] = (), grad: bool = False,
               stop_at: Site | None = None, within: ForwardResult | None = None) -> ForwardResult:
        """The clean run with `x` at one site; only what comes after it is computed.

        Args:
            site: any site.
            x: [n * B, T, D], n replicas of the batch.
            edits: further edits, of later sites.
            capture: sites to return.
            grad: whether to keep the graph (from `x` on).
            stop_at: do not go on beyond this site.
            within: the run that is continued, if another than the clean one; it must have captured `self.streams`.
        """
        batch = repeated(self.item.clean, len(x) // self.n)
        stream = stream_before(self.model.info, site)
        start, put = None, [Replace(site, x)]
        if stream == site:
            start, put = Start(site, x), []
        elif stream is not None:
            start = Start(stream, (within or self.result)[stream].repeat(len(x) // self.n, 1, 1))
        return self.model.forward(batch, start=start, edits=[*put, *edits], capture=capture, grad=grad, stop_at=stop_at,
                                  logits="none" if stop_at else self.logits)


def repeated(batch: TokenBatch, n: int) -> TokenBatch:
    """Replicas of a batch, one after the other: row r * B + b is row b."""
    return batch if n == 1 else batch.take(torch.arange(len(batch.ids), device=batch.ids.device).repeat(n))


def stream_before(info: ModelInfo, site: Site) -> Site | None:
    """The last site not after this one from which a forward can start (`embed` or `resid.L`); None if there is none."""
    end = info.depth(site)
    return next((s for s in reversed(info.sites) if s.name in ("embed", "resid") and info.depth(s) <= end), None)


def _streams(info: ModelInfo, sites: Sequence[Site]) -> list[Site]:
    return list(dict.fromkeys(s for s in (stream_before(info, site) for site in sites) if s is not None))


def pull(basis: Basis, site: Site, gradient: Tensor, codes: Tensor) -> Tensor:
    """Gradient with respect to a site's value, [..., D] -> with respect to its codes, [..., K] (at `codes`)."""
    if basis.dictionary.directions() is not None:
        return gradient.to(codes.dtype) @ basis.directions(site).T
    with torch.enable_grad():
        leaf = codes.detach().requires_grad_()
        value = basis.decode(site, leaf)
        [out] = torch.autograd.grad(value, leaf, gradient.to(value.dtype).expand_as(value))
    return out


def _split(basis: Basis, site: Site, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, and error in the basis's own precision."""
    z = basis.encode(site, x)
    return z, x.to(z.dtype) - basis.decode(site, z)


def _reads_last(metric: Metric[Any], result: ForwardResult, item: ContrastBatch) -> bool:
    """Whether logits at the last token are enough (a metric that needs more refuses them)."""
    assert result.logits is not None
    last = result.logits[torch.arange(len(result.logits)), item.clean.last()][:, None]
    try:
        metric(replace(result, logits=last), item.clean, item.targets)
    except ReprBasisError:
        return False
    return True
