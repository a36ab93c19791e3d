"""How the large matrix products are computed: with which kernels, and in a training in which number format.

On x86 processors with AVX-512 float32 products go through oneDNN, which PyTorch brings along, instead of its default library:
twice as fast where that library keeps to AVX2 (processors that are not Intel's), and the same up to rounding. Dense layers of a
model are told by `hasten`; `torch.backends.mkldnn.flags(enabled=False)` turns it off. What is not a plain float32 matrix on the
CPU, or is under `torch.func`, forward differentiation or autocast, goes PyTorch's way.

In bfloat16 (`using`) products are several times faster where the processor has it (CPUs with avx512_bf16 or amx_bf16, GPUs),
slower elsewhere. Weights, sums, thresholds, losses and the optimiser stay in float32. `kits.sparse` reads the format here;
learners need not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

Format = Literal["float32", "bfloat16"]
_short = False

_FAST = torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_SMALL = 2**20
"""Multiplications below which the default library is as fast."""
_ROWS = 512
"""Rows of a product that are made at a time when it goes into memory that is there: the part stays in the cache."""


@contextmanager
def using(name: Format) -> Iterator[None]:
    """Inside the block products of float32 matrices are computed in this format."""
    global _short
    before, _short = _short, name == "bfloat16"
    try:
        yield
    finally:
        _short = before


def shortened(tensor: Tensor) -> Tensor:
    """What goes into a product: float32 becomes the format of the block."""
    return tensor.bfloat16() if _short and tensor.dtype == torch.float32 else tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b of matrices in the format of the block, as a tensor of the dtype of `a`; differentiable."""
    return linear(shortened(a), shortened(b).T).to(a.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., D] times [K, D]^T, plus [K]: `torch.nn.functional.linear`, by the fastest kernels; differentiable."""
    if not _suits(x, weight):
        return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        out: Tensor = _Linear.apply(x, weight)  # type: ignore[no-untyped-call]
        return out if bias is None else out + bias
    return _multiply(x, weight, bias)


def linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Write `linear(x, weight, bias)` of [N, D] rows into `out` [N, K] and return it; no gradient."""
    if not _suits(x, weight):
        return torch.addmm(bias, x, weight.T, out=out)
    for first in range(0, len(x), _ROWS):
        part = slice(first, first + _ROWS)
        out[part] = _multiply(x[part], weight, bias)
    return out


def hasten(network: nn.Module) -> None:
    """Let the dense layers of a network compute with `linear`."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


class Linear(nn.Linear):
    """A dense layer that computes with `linear`; see `hasten`."""

    def forward(self, input: Tensor) -> Tensor:
        """As of `torch.nn.Linear`."""
        return linear(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    """x W^T; its gradients are products of the same kind, which can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad
        return (linear(grad, weight.T) if need_x else None,
                linear(grad.flatten(0, -2).T, x.flatten(0, -2).T) if need_weight else None)


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can take these and is faster."""
    return bool(_FAST and x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
            and x.ndim > 1 and x.numel() * weight.shape[0] >= _SMALL and type(x) in _PLAIN and type(weight) in _PLAIN
            and (weight.is_contiguous() or weight.T.is_contiguous()) and torch.backends.mkldnn.enabled
            and not torch.is_autocast_enabled("cpu") and not torch._C._are_functorch_transforms_active()
            and forward_ad._current_level < 0)


_PLAIN = (Tensor, nn.Parameter)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.ndim > 2 or not x.T.is_contiguous():
        x = x.contiguous()
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
