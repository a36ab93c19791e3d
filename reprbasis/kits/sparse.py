"""Exact training kernels for sparse codes: one dense matrix product per step, everything else on the active entries.

A training step of a dictionary needs five dense products of 2*N*D*K FLOPs each: pre-activations, decoding, the
gradient of the codes and the gradients of both weight matrices. Only the first must be dense. With E = N * (mean L0)
active entries the other four cost 2*E*D each:

    step                                   dense FLOPs   FLOPs here    bytes moved here (fp32)
    h = x W_enc^T + b                      2 N D K       2 N D K       4 (N D + K D + N K)
    decode  x^ = z W_dec                   2 N D K       2 E D         4 (E D + N D)
    dL/dz at active entries                2 N D K       2 E D         4 (E D + N D)
    dL/dW_dec = z^T dL/dx^                 2 N D K       2 E D         4 (E D + K D)
    dL/dW_enc = (dL/dh)^T x                2 N D K       2 E D         4 (E D + K D)

`Codes` holds the pre-activations of the entries that can matter, as one flat differentiable vector; learners write
their activation function and losses on it with plain autograd. Above `DENSE_ABOVE` of all entries, on devices
other than the CPU, and in short floating types, the same formulas run on the dense [N, K] matrix. Both ways give the
same loss and gradients up to rounding.

With products in bfloat16 (`runtime.products`) the first product only chooses the entries; their values are computed
again in float32 (2 E D FLOPs), so that codes, losses and gradients are those of float32 but for entries that are
chosen otherwise: those within 1 % of the floor or of the smallest code kept. On the dense way all five products are in
bfloat16.

Shapes: N rows, D width, K latents, E active entries (`kept` of the N * K).
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from ..runtime import distributed
from ..runtime.products import linear_into, product, shortened

DENSE_ABOVE = 0.12
"""Share of active entries above which dense products are faster, estimated from timings of the single kernels on a 2-core AVX-512
CPU at D 576, K 4608."""


class Scratch:
    """A [N, K] buffer that is kept between steps.

    A fresh 75 MB tensor costs the CPU as much in page faults as the product that fills it. The view returned by
    `take` is valid until the next `take`; autograd raises if it was overwritten before backward.
    """

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    def take(self, n: int, k: int, like: Tensor) -> Tensor:
        """An uninitialised [n, k] matrix of the dtype and device of `like`."""
        flat = self._flat
        if flat is None or flat.numel() < n * k or (flat.dtype, flat.device) != (like.dtype, like.device):
            flat = self._flat = torch.empty(n * k, dtype=like.dtype, device=like.device)
        return flat[:n * k].view(n, k)


class Pattern:
    """Which entries of an [N, K] matrix are kept, row by row.

    Args:
        rows, cols: [E] int64, sorted by row.
        shape: (N, K).
    """

    def __init__(self, rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> None:
        self.rows, self.cols, self.shape = rows, cols, shape

    @cached_property
    def row_starts(self) -> Tensor:
        """[N + 1] where each row starts."""
        return _starts(self.rows, self.shape[0])

    @cached_property
    def column_starts(self) -> Tensor:
        """[K + 1] where each column starts once the entries are sorted by column."""
        return _starts(self.cols, self.shape[1])

    @cached_property
    def by_column(self) -> Tensor:
        """[E] the order of entries by column, rows ascending within a column."""
        narrow = torch.int16 if self.shape[1] <= 2**15 else torch.int32
        return self.cols.to(narrow).argsort(stable=True)

    def times(self, values: Tensor, table: Tensor) -> Tensor:
        """[E] values as a sparse [N, K], times [K, D] -> [N, D]."""
        return _bags(self.cols, table, self.row_starts, values)

    def transposed_times(self, values: Tensor, table: Tensor) -> Tensor:
        """[E] values as a sparse [N, K], transposed, times [N, D] -> [K, D]."""
        return _bags(self.rows[self.by_column], table, self.column_starts, values[self.by_column])

    def sample(self, left: Tensor, right: Tensor) -> Tensor:
        """[E] the kept entries of `left [N, D] @ right[K, D]^T`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "Sparse CSR tensor support is in beta state"
            mould = torch.sparse_csr_tensor(self.row_starts, self.cols, left.new_zeros(self.cols.shape), size=self.shape,
                                            check_invariants=False)
        picked: Tensor = torch.sparse.sampled_addmm(mould, left, right.T, beta=0.0)
        return picked.values()


def _starts(index: Tensor, size: int) -> Tensor:
    starts = index.new_zeros(size + 1)
    torch.cumsum(torch.bincount(index, minlength=size), 0, out=starts[1:])
    return starts


def _bags(index: Tensor, table: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    return embedding_bag(index, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


class _EncodeAt(torch.autograd.Function):
    """[E] kept entries of x W^T + b, whose values are known; backward by sparse products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pattern = pattern
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        grad = grad.contiguous()
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        return (pattern.times(grad, weight) if need_x else None,
                pattern.transposed_times(grad, x) if need_weight else None,
                _column_sum(pattern, grad) if need_bias else None, None, None)


class _EncodeDense(torch.autograd.Function):
    """[N, K] x W^T + b, whose values are known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        return (product(grad, weight) if need_x else None, product(grad.T, x) if need_weight else None,
                grad.sum(0) if need_bias else None, None)


class _DecodeAt(torch.autograd.Function):
    """[N, D] sparse codes times [K, D]; the gradient of the codes only where they are kept."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.pattern = pattern
        return pattern.times(values, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        grad = grad.contiguous()
        need_values, need_weight = ctx.needs_input_grad[:2]
        return (pattern.sample(grad, weight) if need_values else None,
                pattern.transposed_times(values, grad) if need_weight else None, None)


def _column_sum(pattern: Pattern, values: Tensor) -> Tensor:
    return values.new_zeros(pattern.shape[1]).index_add_(0, pattern.cols, values)


class Codes(ABC):
    """Pre-activations `h` of one batch, differentiable in x, W_enc and b_enc.

    `h` is [E] (kept entries) or [N, K]; functions that act entry by entry work on both. Entries that were not kept
    count as 0.
    """

    h: Tensor

    @abstractmethod
    def at(self, parameter: Tensor) -> Tensor:
        """[K] one value per latent -> aligned with `h`."""

    @abstractmethod
    def kept(self, values: Tensor) -> Tensor:
        """`values`, aligned with `h`, and 0 where an entry was not kept."""

    @abstractmethod
    def row_sum(self, values: Tensor) -> Tensor:
        """Aligned with `h` -> [N]."""

    @abstractmethod
    def decode(self, values: Tensor, weight: Tensor) -> Tensor:
        """Codes aligned with `h`, times [K, D] -> [N, D]."""

    @abstractmethod
    def decode_groups(self, values: Tensor, weight: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """What each group of consecutive latents adds to `decode`: one [N, D] for each of `sizes`, which add up to K.

        Costs what one `decode` costs; nested (Matryoshka) dictionaries sum the parts up.
        """

    @abstractmethod
    def count(self, values: Tensor) -> Tensor:
        """[N] positive codes of each row, in the dtype of `values`; no gradient."""

    @abstractmethod
    def fired(self, values: Tensor) -> Tensor:
        """[K] bool: latents with a positive code somewhere in the batch."""


class SparseCodes(Codes):
    """`h` is [E]."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, values: Tensor, pattern: Pattern) -> None:
        self.pattern = pattern
        self.h = _EncodeAt.apply(x, weight, bias, values, pattern)  # type: ignore[no-untyped-call]

    def at(self, parameter: Tensor) -> Tensor:
        return parameter.index_select(0, self.pattern.cols)

    def kept(self, values: Tensor) -> Tensor:
        return values

    def row_sum(self, values: Tensor) -> Tensor:
        return _over_latents(values.new_zeros(self.pattern.shape[0]).index_add(0, self.pattern.rows, values))

    def decode(self, values: Tensor, weight: Tensor) -> Tensor:
        return _over_latents(_DecodeAt.apply(values, weight, self.pattern))  # type: ignore[no-untyped-call]

    def decode_groups(self, values: Tensor, weight: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        rows, cols, n = self.pattern.rows, self.pattern.cols, self.pattern.shape[0]
        ends = torch.tensor(sizes, device=cols.device).cumsum(0)
        group = torch.bucketize(cols, ends, right=True)
        order = group.argsort(stable=True)  # rows stay ascending within a group
        counts = torch.bincount(group, minlength=len(sizes)).tolist()
        parts = zip(torch.split(order, counts), torch.split(values[order], counts), torch.split(weight, list(sizes)),
                    ends.tolist(), sizes, strict=True)
        return [_DecodeAt.apply(part, table, Pattern(rows[own], cols[own] - (end - size), (n, size)))  # type: ignore[no-untyped-call]
                for own, part, table, end, size in parts]

    def count(self, values: Tensor) -> Tensor:
        return self.row_sum((values.detach() > 0).to(values.dtype))

    def fired(self, values: Tensor) -> Tensor:
        return torch.bincount(self.pattern.cols[values > 0], minlength=self.pattern.shape[1]) > 0


class DenseCodes(Codes):
    """`h` is [N, K]; `mask` [N, K] bool says what is kept."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, values: Tensor, mask: Tensor) -> None:
        self.mask = mask
        self.h = _EncodeDense.apply(x, weight, bias, values)  # type: ignore[no-untyped-call]

    def at(self, parameter: Tensor) -> Tensor:
        return parameter

    def kept(self, values: Tensor) -> Tensor:
        return values.masked_fill(~self.mask, 0.0)

    def row_sum(self, values: Tensor) -> Tensor:
        return _over_latents(values.sum(1))

    def decode(self, values: Tensor, weight: Tensor) -> Tensor:
        return _over_latents(product(values, weight))

    def decode_groups(self, values: Tensor, weight: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        parts = zip(torch.split(values, list(sizes), dim=1), torch.split(weight, list(sizes)), strict=True)
        return [product(part, table) for part, table in parts]

    def count(self, values: Tensor) -> Tensor:
        parts = torch.split(values.detach(), 128)  # small temporaries stay in cache
        return _over_latents(torch.cat([(part > 0).to(part.dtype).sum(1) for part in parts]))

    def fired(self, values: Tensor) -> Tensor:
        positive: Tensor = values.amax(0) > 0
        return positive


def _over_latents(part: Tensor) -> Tensor:
    """What the latents of this process give, and those of the others."""
    return distributed.current().sum(part, "latents")


def _preactivations(x: Tensor, weight: Tensor, bias: Tensor, scratch: Scratch) -> Tensor:
    """[N, K] in the format of products."""
    left = shortened(x)
    return linear_into(scratch.take(x.shape[0], weight.shape[0], left), left, shortened(weight), shortened(bias))


def _has_kernels(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _dense(x: Tensor, weight: Tensor, bias: Tensor, h: Tensor, mask: Tensor) -> DenseCodes:
    return DenseCodes(x, weight, bias, h.to(x.dtype), mask)


def _sparse(x: Tensor, weight: Tensor, bias: Tensor, values: Tensor, pattern: Pattern) -> SparseCodes:
    """`values` that are shorter than `x` are computed again."""
    if values.dtype != x.dtype:
        with torch.no_grad():
            values = pattern.sample(x, weight) + bias.index_select(0, pattern.cols)
    return SparseCodes(x, weight, bias, values, pattern)


def _from_mask(x: Tensor, weight: Tensor, bias: Tensor, h: Tensor, mask: Tensor) -> Codes:
    if not _has_kernels(x) or int(mask.count_nonzero()) > DENSE_ABOVE * mask.numel():
        return _dense(x, weight, bias, h, mask)
    flat = mask.view(-1).nonzero()[:, 0]
    rows = flat.div(h.shape[1], rounding_mode="floor")
    pattern = Pattern(rows, flat - rows * h.shape[1], (h.shape[0], h.shape[1]))
    return _sparse(x, weight, bias, h.view(-1)[flat], pattern)


def codes_above(x: Tensor, weight: Tensor, bias: Tensor, floor: Tensor | float, scratch: Scratch) -> Codes:
    """Codes that keep every pre-activation above `floor` (a number, or [K]).

    Args:
        x: [N, D] rows. Costs 2*N*D*K FLOPs and two passes over [N, K].
        weight: [K, D] encoder.
        bias: [K] encoder bias.
        floor: below it neither the code nor any gradient may depend on the pre-activation.
        scratch: reused for the pre-activations.
    """
    with torch.no_grad():
        h = _preactivations(x, weight, bias, scratch)
        mask = h > (floor.to(h.dtype) if isinstance(floor, Tensor) else floor)
    return _from_mask(x, weight, bias, h, mask)


def codes_topk(x: Tensor, weight: Tensor, bias: Tensor, k: int, scratch: Scratch) -> Codes:
    """Codes that keep the k largest pre-activations of every row, where positive. Arguments as in `codes_above`."""
    with torch.no_grad():
        h = _preactivations(x, weight, bias, scratch)
        n, width = h.shape
        values, cols = h.topk(min(k, width), dim=1, sorted=False)
        ranks = distributed.current()
        if ranks.parts("latents") > 1:
            every = torch.cat(ranks.gathered(values.to(x.dtype).T, "latents"))
            values = values.where(values >= every.topk(min(k, len(every)), dim=0).values.amin(0)[:, None], 0.0)
    if not _has_kernels(x) or k > DENSE_ABOVE * width:
        return _dense(x, weight, bias, h, torch.zeros_like(h, dtype=torch.bool).scatter_(1, cols, values > 0))
    rows = torch.arange(n).repeat_interleave(cols.shape[1])
    values, cols = values.view(-1), cols.view(-1)
    positive = values > 0
    if not bool(positive.all()):
        rows, cols, values = rows[positive], cols[positive], values[positive]
    return _sparse(x, weight, bias, values, Pattern(rows, cols, (n, width)))


def codes_batch_topk(x: Tensor, weight: Tensor, bias: Tensor, k: float, scratch: Scratch) -> Codes:
    """Codes that keep the N*k largest pre-activations of the whole batch, where positive. Arguments as in
    `codes_above`.
    """
    with torch.no_grad():
        h = _preactivations(x, weight, bias, scratch)
        ranks = distributed.current()
        count = round(k * float(ranks.sum(torch.tensor(h.shape[0]), "rows")))
        mask = batch_topk_mask(h, count)
        if ranks.count > 1:
            mine = torch.cat(ranks.gathered(h[mask].to(x.dtype), "latents"))
            every = torch.cat(ranks.gathered(mine, "rows"))
            if len(every) > count:
                mask &= h >= every.topk(count, sorted=False).values.min()
    return _from_mask(x, weight, bias, h, mask)


def batch_topk_mask(h: Tensor, count: int) -> Tensor:
    """[N, K] bool: exactly the `count` largest entries of `h` (fewer when fewer are positive).

    Sorting N*K entries is slow. A threshold estimated from a sample of rows leaves a few more candidates than
    `count`, among which the answer is found exactly; should the estimate leave too few, it is lowered until it does
    not.
    """
    flat = h.reshape(-1)
    count = min(count, flat.numel())
    sample = h[:: max(h.shape[0] // 64, 1)].reshape(-1)
    share = 1.3 * count / flat.numel()
    while share < 1:
        floor = sample.topk(max(round(share * sample.numel()), 1), sorted=False).values.min().clamp_min(0)
        candidates = (flat > floor).nonzero()[:, 0]
        if len(candidates) >= count or float(floor) == 0:
            break
        share *= 2
    else:
        candidates = (flat > 0).nonzero()[:, 0]
    if len(candidates) > count:
        candidates = candidates[flat[candidates].topk(count, sorted=False).indices]
    return torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, candidates, True).view_as(h)
