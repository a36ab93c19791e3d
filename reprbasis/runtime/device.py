"""Where tensors live: the device that a config names, and getting there."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..errors import UserError


def usable(name: str) -> torch.device:
    """The device of that name that this process is to use.

    Of the processes that torchrun starts on a machine each takes a device of its own: for them `cuda` is the GPU with the number
    of the process (LOCAL_RANK), and any other is refused. The CPU is shared.

    Raises:
        UserError: this PyTorch knows no such device, or the machine has none, or not one for each process.
    """
    try:
        device = _own(torch.device(name))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        told = str(error).partition("\n")[0]
        raise UserError(f"the device '{name}' cannot be used here: {told}",
                        do="write device: cpu, or cuda:0 on a machine that has one, with a PyTorch built for it") from error
    return device


def _own(device: torch.device) -> torch.device:
    """This process's device of the kind asked for."""
    processes, mine = (int(os.environ.get(f"LOCAL_{name}", default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    if device.type == "cpu" or processes == 1 or device.index == mine:
        return device
    if device.index is not None:
        raise UserError(f"{processes} processes run on this machine, and '{device}' is not for process {mine}",
                        do=f"write device: {device.type}, without a number: each process then takes its own")
    count = torch.get_device_module(device.type).device_count()
    if 0 < count < processes:
        raise UserError(f"{processes} processes run on this machine, which shows them {count} of the device '{device.type}'",
                        do=f"start one process for each (torchrun --nproc-per-node {count}), or write device: cpu")
    return torch.device(device.type, mine)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`. To CUDA it goes through pinned memory, and nobody waits for it."""
    if device.type == "cpu":
        return tensor
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
