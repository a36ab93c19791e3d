"""Straight-through gradients of the jump (Rajamanoharan et al. 2024, arXiv 2407.14435).

    forward    f = h 1[h > t]                     s = 1[h > t]
    backward   df/dh = 1[h > t]                   ds/dh = 0
               df/dt = -(t / e) K((h - t) / e)    ds/dt = -(1 / e) K((h - t) / e)       K(u) = 1 if |u| < 1/2 else 0

The kernel is two-sided and sees the pre-activation h, not the code. `h` and `t` are broadcast against each other.
"""

import torch
from torch.autograd.function import once_differentiable


def _window(h, threshold, bandwidth):
    return ((h - threshold).abs() < bandwidth / 2).to(h.dtype) / bandwidth


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, threshold, bandwidth):
        ctx.save_for_backward(h, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(h > threshold, h, torch.zeros_like(h))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        h, threshold = ctx.saved_tensors
        return grad * (h > threshold), -grad * threshold * _window(h, threshold, ctx.bandwidth), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, threshold, bandwidth):
        ctx.save_for_backward(h, threshold)
        ctx.bandwidth = bandwidth
        return (h > threshold).to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        h, threshold = ctx.saved_tensors
        return None, -grad * _window(h, threshold, ctx.bandwidth), None


def jump(h, threshold, bandwidth):
    """`h` where it exceeds the threshold, else 0; `bandwidth` is a float or a scalar tensor."""
    return _Jump.apply(h, threshold.expand_as(h), bandwidth)


def step(h, threshold, bandwidth):
    """1 where `h` exceeds the threshold, else 0."""
    return _Step.apply(h, threshold.expand_as(h), bandwidth)
