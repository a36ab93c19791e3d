"""Several processes as one: what `harvest` and `fit` need when the program is started by `torchrun`.

The ranks (processes) form a grid. Along its `rows` axis the rows of every training step are divided; along its `latents` axis
the latents of the dictionary are. A sum over rows or latents adds up the parts of all ranks, so every rank holds the same loss,
and gradients are those of one process up to rounding. Rank 0 alone writes artifacts, records and reports.

    what is exchanged in a training step of N rows, D width, P parameters on R x W ranks      floats
    reconstruction, along latents                                                             N D / R, there and back
    L0 and the like, along latents                                                            N / R each
    gradients, along rows                                                                     P / W

Without torchrun there is one rank and every sum is the identity.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ReprBasisError, UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from ..interfaces.learner import Dictionary

WAIT = timedelta(days=30)
"""How long a rank waits for the others; a rank that ends is noticed at once, whatever this says."""


RESUME = ("look above for its message, or in the system's log if it was killed (memory?); "
          "then run the same command again: it resumes")


class LostRankError(ReprBasisError):
    """Another process of the run has ended."""


@dataclass(frozen=True)
class Ranks:
    """The processes of this program, and this one's place among them.

    Args:
        mesh: the grid, axes `rows` and `latents`; None: one process alone.
    """

    mesh: DeviceMesh | None = None

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
        if self.mesh is None or self.parts(axis) == 1:
            return value
        factor = self.parts(axis) if axis == "rows" else 1
        out: Tensor = _Sum.apply(value, self.mesh.get_group(axis), factor)  # type: ignore[no-untyped-call]
        return out

    def largest(self, value: Tensor, axis: str) -> Tensor:
        """The largest value over the ranks of an axis, entry by entry; no gradient."""
        if self.mesh is None or self.parts(axis) == 1:
            return value
        out = value.detach().clone()
        _talk(dist.all_reduce, out, op=dist.ReduceOp.MAX, group=self.mesh.get_group(axis))
        return out

    def any(self, value: Tensor, axis: str) -> Tensor:
        """Bool tensors: whether it is true on some rank of an axis."""
        return value if self.parts(axis) == 1 else self.largest(value.to(torch.uint8), axis).bool()

    def gathered(self, value: Tensor, axis: str) -> list[Tensor]:
        """The tensors of all ranks of an axis, in order, which may differ in length; no gradient."""
        if self.mesh is None or self.parts(axis) == 1:
            return [value]
        group, mine = self.mesh.get_group(axis), torch.tensor(len(value))
        sizes = [torch.empty_like(mine) for _ in range(self.parts(axis))]
        _talk(dist.all_gather, sizes, mine, group=group)
        longest = max(map(int, sizes))
        padded = value.new_zeros(longest, *value.shape[1:])
        padded[:len(value)] = value.detach()
        out = [torch.empty_like(padded) for _ in sizes]
        _talk(dist.all_gather, out, padded, group=group)
        return [part[:int(size)] for part, size in zip(out, sizes, strict=True)]

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Average the gradients over the ranks that saw other rows, see `sum`."""
        if self.mesh is not None and self.parts("rows") > 1:
            for p in parameters:
                if p.grad is not None:
                    _talk(dist.all_reduce, p.grad, group=self.mesh.get_group("rows"))
                    p.grad.div_(self.parts("rows"))


class _Sum(torch.autograd.Function):
    """All-reduce whose result every rank goes on with alike: the gradient comes back as it is, times `factor`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any, factor: int) -> Tensor:
        ctx.factor = factor
        out = value.detach().clone(memory_format=torch.contiguous_format)
        _talk(dist.all_reduce, out, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad if ctx.factor == 1 else grad * ctx.factor, None, None


class Divided:
    """A dictionary in training whose latents are divided along the `latents` axis (torch.distributed.tensor).

    Its tensors are replaced by this rank's parts; learners compute with these and exchange sums (`kits.sparse.Codes`).

    Args:
        dictionary: whole, the same on every rank.
        ranks: the grid.
    """

    def __init__(self, dictionary: Dictionary, ranks: Ranks) -> None:
        self.dictionary, self.ranks = dictionary, ranks
        self.axes = dict(dictionary.latent_axes()) if ranks.parts("latents") > 1 else {}
        self.shapes = {name: value.shape for name, value in dictionary.state_dict().items()}
        for name, value in self._tensors():
            value.data = self.part(name, value.data)

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a tensor shaped like the entry `name`."""
        if self.ranks.mesh is None or name not in self.axes:
            return whole
        from torch.distributed.tensor import Shard, distribute_tensor

        shared = distribute_tensor(whole, self.ranks.mesh["latents"], [Shard(self.axes[name])], src_data_rank=None)
        return shared.to_local().clone()

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The tensor from the parts of all ranks, each of which must call this."""
        if self.ranks.mesh is None or name not in self.axes:
            return part
        from torch.distributed.tensor import DTensor, Shard

        shape = self.shapes[name]
        shared = DTensor.from_local(part, self.ranks.mesh["latents"], [Shard(self.axes[name])], run_check=False, shape=shape,
                                    stride=torch.empty(shape, device="meta").stride())
        out: Tensor = _talk(shared.full_tensor)
        return out

    def state(self) -> dict[str, Tensor]:
        """The `state_dict()` of the whole dictionary."""
        return {name: self.whole(name, value) for name, value in self.dictionary.state_dict().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        self.dictionary.load_state_dict({name: self.part(name, value) for name, value in state.items()})

    def join(self) -> None:
        """Make the dictionary whole again."""
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
def grid(latents: int = 1) -> Iterator[Ranks]:
    """Let all ranks work together: `latents` of them share a dictionary, and groups of these share the rows.

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

    mesh = init_device_mesh("cpu", (world // latents, latents), mesh_dim_names=("rows", "latents"))
    before, _ranks = _ranks, Ranks(mesh)
    try:
        yield _ranks
    finally:
        _ranks = before


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
    try:
        return call(*args, **kwargs)
    except (RuntimeError, dist.DistError) as error:
        raise _lost(f"another process of this run has ended, so rank {os.environ.get('RANK', '0')} stops") from error
