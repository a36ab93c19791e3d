"""Several processes as one: what `harvest` and `fit` need when the program is started by `torchrun`.

The ranks (processes) form a grid. Along its `rows` axis the rows of every training step are divided; along its `latents` axis
the latents of the dictionary are. A sum over rows or latents adds up the parts of all ranks, so every rank holds the same loss,
and gradients are those of one process up to rounding. Rank 0 alone writes artifacts, records and reports.

    what is exchanged in a training step of N rows, D width, P parameters on R x W ranks      floats
    reconstruction, along latents                                                             N D / R, there and back
    L0 and the like, along latents                                                            N / R each
    gradients, along rows                                                                     P / W

Without torchrun there is one rank and every sum is the identity.

Tensors on the CPU are exchanged by gloo; those of another device by its own library where PyTorch has one (NCCL for CUDA), and
through the CPU where it has none. A whole dictionary (before it is divided, in checkpoints, once it is joined) lies on the CPU:
it must fit the machine's memory, not a device's.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ReprBasisError, UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    from ..interfaces.learner import Dictionary

AXES = ("rows", "latents")
CPU = torch.device("cpu")
WAIT = timedelta(days=30)
"""How long a rank waits for the others, of which the first may work alone for hours; gloo notices at once if one ends."""
WAIT_DEVICE = timedelta(minutes=10)
"""How long an exchange between devices may take before its library ends the process: ranks that train are in step."""


RESUME = ("look above for its message, or in the system's log if it was killed (memory?); "
          "then run the same command again: it resumes")


class LostRankError(ReprBasisError):
    """Another process of the run has ended."""


@dataclass(frozen=True)
class Ranks:
    """The processes of this program, and this one's place among them.

    Args:
        mesh: the grid, axes `rows` and `latents`; None: one process alone.
        direct: the groups that exchange tensors of another device directly, by type of device and axis.
    """

    mesh: DeviceMesh | None = None
    direct: Mapping[tuple[str, str], ProcessGroup] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        return 0 if self.mesh is None else dist.get_rank()

    @property
    def count(self) -> int:
        """Number of processes."""
        return 1 if self.mesh is None else self.mesh.size()

    def parts(self, axis: str) -> int:
        """Ranks along an axis."""
        return 1 if self.mesh is None else self.mesh[axis].size()

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.mesh is not None:
            _talk(dist.barrier)

    def decide(self, value: bool) -> bool:
        """What rank 0 says."""
        if self.mesh is None:
            return value
        said = torch.tensor(int(value))
        _talk(dist.broadcast, said, src=0)
        return bool(said)

    def share(self, rows: Tensor) -> Tensor:
        """This rank's part of the first axis, divided along `rows`."""
        return rows if self.mesh is None else rows.tensor_split(self.parts("rows"))[self.mesh["rows"].get_local_rank()]

    def sum(self, value: Tensor, axis: str) -> Tensor:
        """The sum over the ranks of an axis; the gradient of each part is that of the sum.

        Along `rows` it is multiplied by their number, because `average_gradients` divides by it: so what comes from a rank's
        own rows adds up, and what every rank computes alike counts once.
        """
        if self.parts(axis) == 1:
            return value
        out: Tensor = _Sum.apply(value, self, axis)  # type: ignore[no-untyped-call]
        return out

    def largest(self, value: Tensor, axis: str) -> Tensor:
        """The largest value over the ranks of an axis, entry by entry; no gradient."""
        return value if self.parts(axis) == 1 else self._reduced(value.detach().clone(), axis, dist.ReduceOp.MAX)

    def any(self, value: Tensor, axis: str) -> Tensor:
        """Bool tensors: whether it is true on some rank of an axis."""
        return value if self.parts(axis) == 1 else self.largest(value.to(torch.uint8), axis).bool()

    def gathered(self, value: Tensor, axis: str) -> list[Tensor]:
        """The tensors of all ranks of an axis, in order, which may differ in length; no gradient."""
        if self.parts(axis) == 1:
            return [value]
        sizes = [int(size) for size in self._all(torch.tensor(len(value)), axis)]
        if not any(sizes):
            return [value.detach()] * len(sizes)
        padded = value.new_zeros(max(sizes), *value.shape[1:])
        padded[:len(value)] = value.detach()
        return [part[:size] for part, size in zip(self._all(padded, axis), sizes, strict=True)]

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Average the gradients over the ranks that saw other rows, see `sum`."""
        if self.parts("rows") > 1:
            for p in parameters:
                if p.grad is not None:
                    self._reduced(p.grad, "rows").div_(self.parts("rows"))

    def _reduced(self, value: Tensor, axis: str, how: Any = dist.ReduceOp.SUM) -> Tensor:
        """`value` itself, which becomes the sum (or the like) over the ranks of an axis."""
        there, group = self._meet(value, axis)
        _talk(dist.all_reduce, there, op=how, group=group)
        return value.copy_(there)

    def _all(self, value: Tensor, axis: str) -> list[Tensor]:
        """The tensors of all ranks of an axis, which have one shape."""
        there, group = self._meet(value, axis)
        out = [torch.empty_like(there) for _ in range(self.parts(axis))]
        _talk(dist.all_gather, out, there, group=group)
        return [part.to(value.device) for part in out]

    def _meet(self, value: Tensor, axis: str) -> tuple[Tensor, ProcessGroup]:
        """What is exchanged, and in which group: the tensor, or a copy on the CPU if its device has no library for that."""
        assert self.mesh is not None
        group = self.direct.get((value.device.type, axis))
        return (value.cpu(), self.mesh.get_group(axis)) if group is None else (value, group)


class _Sum(torch.autograd.Function):
    """All-reduce whose result every rank goes on with alike: the gradient comes back as it is (along `rows`, see `Ranks.sum`)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks, axis: str) -> Tensor:
        ctx.factor = ranks.parts(axis) if axis == "rows" else 1
        return ranks._reduced(value.detach().clone(memory_format=torch.contiguous_format), axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad if ctx.factor == 1 else grad * ctx.factor, None, None


class Divided:
    """A dictionary in training whose latents are divided along the `latents` axis (torch.distributed.tensor).

    Its tensors are replaced by this rank's parts; learners compute with these and exchange sums (`kits.sparse.Codes`). Divide on
    the CPU, then move the dictionary to its device: so no device holds more than a part.

    Args:
        dictionary: whole, on the CPU, the same on every rank.
        ranks: the grid.
    """

    def __init__(self, dictionary: Dictionary, ranks: Ranks) -> None:
        self.dictionary, self.ranks = dictionary, ranks
        self.axes = dict(dictionary.latent_axes()) if ranks.parts("latents") > 1 else {}
        self.shapes = {name: value.shape for name, value in dictionary.state_dict().items()}
        for name, value in self._tensors():
            value.data = self.part(name, value.data)

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a CPU tensor shaped like the entry `name`."""
        if self.ranks.mesh is None or name not in self.axes:
            return whole
        from torch.distributed.tensor import Shard, distribute_tensor

        shared = distribute_tensor(whole, self.ranks.mesh["latents"], [Shard(self.axes[name])], src_data_rank=None)
        return shared.to_local().clone()

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The tensor from the parts of all ranks, each of which must call this; if it is divided at all, on the CPU."""
        if self.ranks.mesh is None or name not in self.axes:
            return part
        from torch.distributed.tensor import DTensor, Shard

        shape = self.shapes[name]
        shared = DTensor.from_local(part.cpu(), self.ranks.mesh["latents"], [Shard(self.axes[name])], run_check=False,
                                    shape=shape, stride=torch.empty(shape, device="meta").stride())
        out: Tensor = _talk(shared.full_tensor)
        return out

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over the `state_dict()` of a whole dictionary."""
        self.dictionary.load_state_dict({name: self.part(name, value) for name, value in state.items()})

    def join(self) -> None:
        """Make the dictionary whole again, on the CPU."""
        self.dictionary.cpu()
        for name, value in self._tensors():
            value.data = self.whole(name, value.data)

    def clip(self, parameters: Mapping[str, Tensor], most: float) -> None:
        """Scale all gradients so that their norm over the whole dictionary is at most `most`."""
        if not self.axes:
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), most, foreach=True)
            return
        power = {name: p.grad.square().sum() for name, p in parameters.items() if p.grad is not None}
        own = torch.stack([value for name, value in power.items() if name in self.axes]).sum()
        norm = (self.ranks.sum(own, "latents") + sum(v for name, v in power.items() if name not in self.axes)).sqrt()
        for p in parameters.values():
            if p.grad is not None:
                p.grad.mul_((most / (norm + 1e-6)).clamp(max=1.0))

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.dictionary.named_parameters(), *self.dictionary.named_buffers()]


_ranks = Ranks()
_apart = False


def current() -> Ranks:
    """The ranks that work together now."""
    return _ranks


@contextmanager
def grid(latents: int = 1, device: torch.device = CPU) -> Iterator[Ranks]:
    """Let all ranks work together: `latents` of them share a dictionary, and groups of these share the rows.

    Args:
        latents: ranks that share a dictionary.
        device: of this rank, where the tensors lie that it exchanges; they may lie on the CPU too.

    Raises:
        UserError: the number of processes cannot be divided by `latents`.
    """
    global _ranks
    world = dist.get_world_size() if started() and not _apart else 1
    if world % latents:
        raise UserError(f"{world} processes cannot be divided into groups of {latents} that share the latents",
                        do="start a multiple of `shards` processes (torchrun --nproc-per-node ...)")
    if world == 1:
        yield _ranks
        return
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (world // latents, latents), mesh_dim_names=AXES)
    direct = {}
    if library := _library(device):
        for axis, groups in zip(AXES, (mesh.mesh.T.tolist(), mesh.mesh.tolist()), strict=True):
            if len(groups[0]) > 1:
                mine, _ = dist.new_subgroups_by_enumeration(groups, WAIT_DEVICE, library)  # type: ignore[no-untyped-call]
                direct[device.type, axis] = mine
    before, _ranks = _ranks, Ranks(mesh, direct)
    try:
        yield _ranks
    finally:
        _ranks = before
    for group in direct.values():
        dist.destroy_process_group(group)


def _library(device: torch.device) -> str | None:
    """The library by which processes exchange tensors of this device; None: there is none, or it is the CPU."""
    if device.type == "cpu":
        return None
    try:
        name: str = dist.get_default_backend_for_device(device)
    except ValueError:
        return None
    return name if name != "gloo" and dist.is_backend_available(name) else None


@contextmanager
def apart() -> Iterator[None]:
    """What happens inside concerns this process alone."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def started() -> bool:
    """Whether several processes are connected."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def together() -> Iterator[Ranks]:
    """Connect the processes that torchrun started (gloo) for the time of the block.

    A process that ends takes the others with it: each says so and stops. While it does, SIGTERM, which torchrun sends to what
    is left, is ignored: it would cut off the message.
    """
    def stopped(number: int, frame: object) -> None:
        raise _lost(f"rank {os.environ.get('RANK')} was told to stop, most likely because another process has ended")

    before = signal.signal(signal.SIGTERM, stopped)
    _talk(dist.init_process_group, "gloo", timeout=WAIT)
    try:
        with grid() as ranks:
            pass
        yield ranks
    finally:
        if signal.getsignal(signal.SIGTERM) is stopped:
            signal.signal(signal.SIGTERM, before)
        dist.destroy_process_group()


def _lost(message: str) -> LostRankError:
    """The error of a process that is about to end; from here on SIGTERM is ignored."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return LostRankError(message, do=RESUME)


def _talk(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call something that needs the other ranks."""
    rank = os.environ.get("RANK", "0")
    try:
        return call(*args, **kwargs)
    except dist.DistBackendError as error:  # of a device's library, which has other reasons too
        told = str(error).partition("\n")[0]
        raise _lost(f"rank {rank} cannot exchange tensors with the others, perhaps because one has ended: {told}") from error
    except (RuntimeError, dist.DistError) as error:
        raise _lost(f"another process of this run has ended, so rank {rank} stops") from error
