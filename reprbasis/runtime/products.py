"""In which number format the large matrix products of a training are computed.

In bfloat16 they are several times faster where the processor has it (CPUs with avx512_bf16 or amx_bf16, GPUs), slower elsewhere.
Weights, sums, thresholds, losses and the optimiser stay in float32. `kits.sparse` reads the format here; learners need not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Format = Literal["float32", "bfloat16"]
_short = False


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
    """Return a @ b in the format of the block, as a tensor of the dtype of `a`."""
    return (shortened(a) @ shortened(b)).to(a.dtype)
