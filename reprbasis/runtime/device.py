"""Where tensors live: the device that a config names, and getting there."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError


def usable(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UserError: this PyTorch knows no such device, or the machine has none.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        told = str(error).partition("\n")[0]
        raise UserError(f"the device '{name}' cannot be used here: {told}",
                        do="write device: cpu, or cuda:0 on a machine that has one, with a PyTorch built for it") from error
    return device


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`. To CUDA it goes through pinned memory, and nobody waits for it."""
    if device.type == "cpu":
        return tensor
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
