"""The step with its stand-ins for a derivative, and what bits pay: marginal entropy and covariance, with exact gradients.

Shapes: N rows, K bits, M bits that are not constant in the batch.
"""

import torch
from torch.autograd.function import once_differentiable

from reprbasis.kits.bits import binary_entropy

GRADIENTS = {
    "sigmoid": lambda grad, a: grad * torch.sigmoid(a) * torch.sigmoid(-a),
    "identity": lambda grad, a: grad,
    "reference": lambda grad, a: grad * (1 - grad),
    "printed": lambda grad, a: grad * a * (1 - a),
}
"""Name -> gradient of the pre-activation a, given that of the bit."""
TILE = 1024
"""Columns of the covariance held at once."""


class _Bits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, gradient, temperature):
        ctx.save_for_backward(h)
        ctx.gradient, ctx.temperature = GRADIENTS[gradient], temperature
        return (h >= 0).to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        h, = ctx.saved_tensors
        return ctx.gradient(grad, h / ctx.temperature) / ctx.temperature, None, None


def binarise(h, gradient="sigmoid", temperature=1.0):
    """1 where h >= 0, else 0 (Cho et al. 2025; the released code has 1 where h > 0)."""
    return _Bits.apply(h, gradient, temperature)


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, bits, share):
        rate = share.float() @ bits.float() if bits.dtype.itemsize < 4 else share @ bits
        ctx.save_for_backward(share, rate)
        return binary_entropy(rate.clamp(0, 1)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        share, rate = ctx.saved_tensors
        least = 0.5 / len(share)
        rate = rate.clamp(least, 1 - least)
        return (grad * share[:, None] * ((1 - rate) / rate).log2()).to(share.dtype), None


def marginal_entropy(bits, share):
    """Sum over bits of the entropy of their mean over the batch, in bits.

    The derivative with respect to an entry is share * log2((1 - p) / p), with p kept 1 / 2N away from 0 and 1: without that a bit
    that has just become constant would be pushed harder than any other to stay so.

    Args:
        bits: [N, K] of 0 and 1; any floating type, the entropy is taken in float32 or wider.
        share: [N] weight of each row; sums to 1.
    """
    return _Entropy.apply(bits, share)


class _Covariance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, bits, share, chosen, scale):
        unbias = 1 - share.square().sum()
        centred = bits[:, chosen] - share @ bits[:, chosen]
        weighted = centred * share[:, None]
        value, parts = bits.new_zeros(()), []
        for first in range(0, len(chosen), TILE):
            tile = centred[:, first:first + TILE]
            block = weighted.T @ tile / unbias  # [M, TILE] of the covariance
            width = tile.shape[1]
            block[first:first + width].fill_diagonal_(0.0)
            value += block.abs().sum()
            sign = torch.where(block.abs() > 4 * torch.finfo(block.dtype).eps, block.sign(), 0.0)  # rounding has no sign
            parts.append(weighted @ sign)
        ctx.save_for_backward(torch.cat(parts, 1) * (2 * scale / unbias), chosen)
        ctx.shape = bits.shape
        return value * scale

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        slope, chosen = ctx.saved_tensors
        return slope.new_zeros(ctx.shape).index_copy_(1, chosen, grad * slope), None, None, None


def covariance(bits, share, most=None, generator=None):
    """Sum over ordered pairs of different bits of |cov| over the batch (unbiased, 1 / (N - 1) for equal weights).

    Bits that are constant in the batch have covariance 0 and derivative 0 and are left out; nothing is approximated by that. No
    [M, M] matrix is held. Costs 4*N*M^2 FLOPs, value and derivative together.

    Args:
        bits: [N, K] of 0 and 1.
        share: [N] weight of each row; sums to 1. With a single row the value is 0.
        most: take at most this many bits, drawn by `generator`, and rescale by the number of pairs: right on average.
        generator: of the draw.
    """
    count = bits.detach().sum(0)
    chosen = ((count > 0) & (count < len(bits))).nonzero()[:, 0]
    live = len(chosen)
    if len(bits) < 2 or live < 2:
        return bits.new_zeros(())
    scale = 1.0
    if most is not None and most < live:
        chosen = chosen[torch.randperm(live, generator=generator)[:most].sort().values]
        scale = live * (live - 1) / (most * (most - 1))
    return _Covariance.apply(bits, share, chosen, scale)
