"""The only training loop. Learners bring the maths; this brings data, schedules, checkpoints, logging and safety.

Interrupted training resumes from its last checkpoint and ends with the same bytes as an uninterrupted run: the checkpoint
holds the dictionary (with its counters), the optimiser, both generators, the mixing buffer with its content, the cursor into
the data and the history. When a checkpoint is written does not influence the result.

Shapes: N rows of a batch, D width, K latents.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifacts.manifest import new_folder, write_json
from ..artifacts.store import read_tensors, write_tensors
from ..errors import CapabilityError, DataError, NumericsError, UserError
from ..interfaces.learner import ActivationStats, Dictionary, DictionaryLearner, Rows, StepInfo
from ..interfaces.reporter import Progress, Silent
from ..sites import Site
from . import distributed
from .activations import Activations
from .basis import Basis, Normaliser, NormaliserKind
from .buffer import Columns, MixingBuffer
from .device import sent, usable
from .products import Format, using

log = logging.getLogger(__name__)
DENSE = 0.05
"""Share of all latents active per row above which a code no longer counts as sparse."""


class RowSource:
    """Rows of harvested activations in a fixed random order of pieces, balanced over sites, epoch after epoch.

    A piece is up to `piece` tokens of one site in one shard. Every epoch visits each piece once, in its own order.
    Columns: `x` [n, D] in storage dtype, `site` [n], `row` [n] index into the token table.

    Args:
        activations: what was harvested.
        sites: which of its sites.
        seed: fixes the order.
        piece: tokens of a piece.
        repeats: whether tokens that repeat the beginning of an earlier sequence are served too (see `TokenTable.repeats`).
        only: flags that a token must carry, or with `!` must not (see `TokenTable.having`).
    """

    def __init__(self, activations: Activations, sites: Sequence[Site], *, seed: int, piece: int = 1024,
                 repeats: bool = False, only: Sequence[str] = ()) -> None:
        self.activations, self.sites, self.seed, self.repeats, self.only = activations, tuple(sites), seed, repeats, tuple(only)
        kept = activations.table.having(only)
        if not repeats:
            kept &= ~activations.table.repeats
        self.tokens = int(kept.sum())
        base = 0
        self.pieces: list[tuple[int, int, int, Tensor]] = []  # site index, shard, first row of the shard, rows within it
        for shard, size in enumerate(activations.shards):
            for rows in torch.split(torch.nonzero(kept[base:base + size]).flatten(), piece):
                self.pieces += [(i, shard, base, rows) for i in range(len(self.sites)) if len(rows)]
            base += size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def chunk(self, index: int) -> Columns | None:
        """Piece `index` of the endless stream of epochs."""
        epoch, place = divmod(index, len(self.pieces))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.pieces), generator=generator)
        site, shard, base, rows = self.pieces[int(self._order[place])]
        first = int(rows[0])
        x = self.activations.read(self.sites[site], shard, slice(first, int(rows[-1]) + 1))
        return {"x": x[rows - first], "site": torch.full_like(rows, site), "row": rows + base}


@dataclass(frozen=True)
class Preparation:
    """Turns buffer columns, which lie in main memory, into the rows a learner sees, on the device of the normaliser."""

    activations: Activations
    normaliser: Normaliser
    norm_cap: float

    def __call__(self, columns: Columns) -> Rows:
        """Normalise, attach what is known of each token, and weight down rows of huge norm.

        A row with |x'| > norm_cap * sqrt(D) gets weight (norm_cap * sqrt(D) / |x'|)^2, so that attention sinks, whose norm is
        up to 100 times the median, do not rule the loss.
        """
        device, row, table = self.normaliser.mean.device, columns["row"], self.activations.table
        site = sent(columns["site"], device)
        x = self.normaliser.apply(sent(columns["x"], device).float(), site)
        power = torch.linalg.vector_norm(x, dim=-1).square_().div_(x.shape[-1])
        weight = (self.norm_cap**2 / power.clamp_min(1e-12)).clamp_max(1.0)
        special = table.flags.get("special")
        ids, positions, sequences = (sent(column[row], device) for column in (table.ids, table.positions, table.sequences))
        known = sent(torch.zeros_like(row, dtype=torch.bool) if special is None else special[row], device)
        return Rows(x, site, ids, positions, sequences, known, weight)


def fit(learner: DictionaryLearner[Any], activations: Activations, *, rows: int, sites: str | Sequence[str | Site] = "*",
        normaliser: NormaliserKind = "affine", batch: int = 4096, lr: float | None = None, warmup: float = 0.05,
        decay: float = 0.2, lr_end: float = 1.0, clip: float | None = 1.0, buffer: int = 2**18, norm_cap: float = 4.0,
        repeats: bool = False, only: Sequence[str] = (), log_every: int = 20, checkpoint_seconds: float = 60.0, shards: int = 1,
        device: str = "cpu", products: Format = "float32", seed: int = 0, folder: Path | None = None,
        progress: Progress | None = None, capabilities: frozenset[str] | None = None) -> Basis:
    """Learn one dictionary over all chosen sites.

    Under torchrun every process calls this with the same arguments and gets the same basis: the rows of each step are divided
    over the processes, or over groups of `shards` processes that divide the latents. The result is that of one process up to
    rounding, and a checkpoint may be resumed by another number of processes. Every process makes the whole dictionary in the
    machine's memory; its device holds its part of the latents alone.

    Args:
        learner: the kind of dictionary.
        activations: harvested rows.
        rows: rows to train on (one row = one token at one site); epochs repeat as needed.
        sites: selectors among the harvested sites; all must have one width.
        normaliser: per-site map to comparable units: `affine`, `scalar` or `none`.
        batch: rows per step.
        lr: peak learning rate; None: what the learner asks for.
        warmup, decay, lr_end: see `schedule`.
        clip: largest global gradient norm; None: no clipping.
        buffer: rows held by the mixing buffer (cut to the rows there are).
        norm_cap: see `Preparation`.
        repeats: train on repeated beginnings too (see `TokenTable.repeats`); without them a system prompt that every dialogue
            shares counts once.
        only: train on tokens that carry all of these flags, or with `!` do not: `["thinking"]`, `["!image", "!special"]`.
            Normalisers know all tokens.
        log_every: steps between log lines.
        checkpoint_seconds: time between checkpoints (only with `folder`).
        shards: processes that share the latents of the dictionary (only under torchrun).
        device: where the dictionary is trained, for example cpu or cuda; never chosen for you. Under torchrun `cuda` gives each
            process its own GPU. Training starts the same on every device, and the result comes back to the CPU; a checkpoint may
            be resumed on another device.
        products: number format of the large matrix products (see `runtime.products`); the rest stays float32.
        seed: fixes data order, initialisation and the learner's randomness.
        folder: where checkpoints are kept and looked for; None: none.
        progress: where to report.
        capabilities: recorded in the basis; None: asked of the registry.

    Raises:
        CapabilityError: under torchrun, a learner whose rows or latents cannot be divided; products in bfloat16 of a learner that
            does not provide `bfloat16-products`.
        DataError: fewer rows than two batches, or no token with the flags asked for.
        NumericsError: a loss term is NaN or infinite; names the step and the term.
        UserError: this machine has no such device, or under torchrun not one for each process.
    """
    place = usable(device)
    chosen = activations.select(sites if isinstance(sites, str) else list(sites))
    norm = Normaliser.fit(normaliser, chosen, activations.stats)
    source = RowSource(activations, chosen, seed=seed, repeats=repeats, only=only)
    available = source.tokens * len(chosen)
    if min(available, rows) < 2 * batch:
        raise DataError(f"there are {available} rows ({source.tokens} tokens x {len(chosen)} sites) and {rows} are asked for; "
                        f"training needs at least two batches, {2 * batch}",
                        do="harvest more tokens, ask for more rows, or use a smaller batch")
    generator = torch.Generator().manual_seed(seed)
    prepare = Preparation(activations, norm.to(place), norm_cap)
    capacity = max(min(buffer, available), 2 * batch)
    mixing = MixingBuffer(source, capacity=capacity, batch=batch, seed=seed, pinned=place.type == "cuda")
    stats = activation_stats(source, replace(prepare, normaliser=norm), seed=seed)
    if capabilities is None:
        from ..discovery import default_registry

        capabilities = frozenset(default_registry().component("learner", learner.full_name).component.provides
                                 if learner.full_name else ())
    dictionary = learner.start(stats, generator)
    dictionary.train()
    width = dictionary.d_dict
    peak = learner.learning_rate(width) if lr is None else lr
    total = rows // batch
    history: list[dict[str, float]] = []
    sums: dict[str, Tensor] = {}
    start = 0
    checkpoint = None if folder is None else folder / "checkpoint"
    saved = time.monotonic()
    watched = "sparse-latents" in capabilities

    shown = (progress or Silent()).task("learn", total=rows, unit="rows")
    with distributed.grid(shards, place) as ranks, using(products), shown as task:
        _check_abilities(learner, capabilities, ranks, products)
        divided = distributed.Divided(dictionary, ranks)  # on the CPU: the device may be too small for the whole
        dictionary.to(place)
        parameters = {name: p for name, p in dictionary.named_parameters() if p.requires_grad}
        optimiser, factors = _optimiser(learner, dictionary, peak)
        if checkpoint is not None and (checkpoint / "state.json").is_file():
            start, history, sums = _resume(checkpoint, divided, optimiser, generator, mixing)
            log.info("resumed at step %d of %d", start, total)
        for step in range(start, total):
            columns = mixing.next()
            assert columns is not None  # the source is endless
            info = StepInfo(step, total, step * batch, generator)
            for group, factor in zip(optimiser.param_groups, factors, strict=True):
                group["lr"] = peak * factor * schedule(step, total, warmup, decay, lr_end)
            terms = learner.loss(dictionary, prepare({name: ranks.share(column) for name, column in columns.items()}), info)
            optimiser.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
            ranks.average_gradients(parameters.values())
            learner.before_step(dictionary, info)
            if clip is not None:
                divided.clip(parameters, clip)
            optimiser.step()
            learner.after_step(dictionary, info)
            for name, value in {**terms, **info.scratch}.items():
                sums[name] = sums.get(name, 0) + value.detach()
            if (step + 1) % log_every == 0 or step + 1 == total:
                line = _line(sums, step, log_every, batch)
                history.append(line)
                if watched and not ranks.rank and step + 1 >= total / 2 and line.get("l0", 0.0) > DENSE * width:
                    watched = False  # said once
                    log.warning("density alarm: %.0f of %d latents are active per row after %d steps; a code that is not sparse "
                                "reconstructs well and explains nothing", line["l0"], width, step + 1)
                sums = {}
                task.update((step + 1) * batch, **{k: v for k, v in line.items() if k not in ("step", "rows")})
            if checkpoint is not None and step + 1 < total and ranks.decide(time.monotonic() - saved >= checkpoint_seconds):
                _checkpoint(checkpoint, step + 1, history, sums, divided, optimiser, generator, mixing)
                saved = time.monotonic()
        divided.join()
    shipped = learner.finish(dictionary.cpu(), stats)
    details = {"history": history,
               "training": {"rows": total * batch, "batch": batch, "lr": peak, "warmup": warmup, "decay": decay, "lr_end": lr_end,
                            "clip": clip, "buffer": capacity, "norm_cap": norm_cap, "repeats": repeats, "only": list(only),
                            "normaliser": normaliser, "device": device, "products": products,
                            "seed": seed, "epochs": total * batch / available},
               "activations": dict(activations.origin)}
    return Basis(chosen, norm, shipped, learner, capabilities=capabilities, details=details)


def _check_abilities(learner: DictionaryLearner[Any], capabilities: frozenset[str], ranks: distributed.Ranks,
                     products: Format) -> None:
    if products != "float32" and "bfloat16-products" not in capabilities:
        raise CapabilityError(f"the learner '{learner.full_name}' takes its products in float32 only", do="leave out `products`")
    for axis in ("rows", "latents"):
        if ranks.parts(axis) > 1 and f"divisible-{axis}" not in capabilities:
            do = "learn in one process, without torchrun" if axis == "rows" else "use shards: 1"
            raise CapabilityError(f"the {axis} of the learner '{learner.full_name}' cannot be divided over {ranks.parts(axis)} "
                                  "processes", do=do)


def activation_stats(source: RowSource, prepare: Preparation, *, seed: int, most: int = 8192) -> ActivationStats:
    """Statistics of normalised rows from a balanced sample (the first pieces of another order of the same data)."""
    other = RowSource(source.activations, source.sites, seed=seed + 1, piece=max(most // (4 * len(source.sites)), 16),
                      repeats=source.repeats, only=source.only)
    seen, total, index = [], 0, 0
    while total < most and index < len(other.pieces):
        columns = other.chunk(index)
        assert columns is not None
        rows = prepare(columns)
        seen.append(rows.x[rows.position > 0])
        total, index = total + len(seen[-1]), index + 1
    x = torch.cat(seen)[:most]
    if len(x) < 2:
        raise DataError("there are too few tokens to start from", do="harvest more tokens")
    mean = x.mean(0)
    return ActivationStats(x.shape[1], len(source.sites), mean, float(x.square().sum(1).mean() / x.shape[1]),
                           float((x - mean).square().sum(1).mean()), x)


def schedule(step: int, total: int, warmup: float, decay: float, lr_end: float = 1.0) -> float:
    """Factor on the learning rate at a step, counted from 0.

    Linear from 1 / up to 1 over the first up = `warmup` * total steps, along a cosine to `lr_end` (1: constant), and linear from
    there to 0 over the last `decay` * total steps. Step 0 is not wasted: the factor is that of the next step of a ramp that
    begins at 0.
    """
    up, down = max(round(total * warmup), 1), round(total * decay)
    along = min(max((step - up) / max(total - up - down, 1), 0.0), 1.0)
    middle = lr_end + (1 - lr_end) * (1 + math.cos(math.pi * along)) / 2
    return min(middle, (step + 1) / up, lr_end * (total - step) / down if step >= total - down else 1.0)


def _optimiser(learner: DictionaryLearner[Any], dictionary: Dictionary, peak: float) -> tuple[torch.optim.Adam, list[float]]:
    groups = [dict(g) for g in learner.param_groups(dictionary)]
    factors = [float(g.pop("lr_factor", 1.0)) for g in groups]
    owned = {id(p) for g in groups for p in g["params"]}
    if missing := [n for n, p in dictionary.named_parameters() if p.requires_grad and id(p) not in owned]:
        raise UserError(f"param_groups leaves out {', '.join(missing)}",
                        where=learner.full_name or type(learner).__name__,
                        do="return every parameter that requires gradients, or freeze it")
    fused = all(p.is_floating_point() for g in groups for p in g["params"])
    return torch.optim.Adam(groups, lr=peak, betas=(0.9, 0.999), eps=6.25e-10, fused=fused), factors


def _line(sums: Mapping[str, Tensor], step: int, every: int, batch: int) -> dict[str, float]:
    count = (step % every) + 1
    line = {"step": float(step + 1), "rows": float((step + 1) * batch)}
    for name, value in sums.items():
        line[name] = float(value) / count
        if not torch.isfinite(value):
            raise NumericsError(f"the term '{name}' became {float(value)}",
                                where=f"training steps {step + 2 - count} to {step + 1}",
                                do="lower the learning rate, or look for rows of huge norm (norm_cap)")
    return line


def _checkpoint(folder: Path, step: int, history: list[dict[str, float]], sums: Mapping[str, Tensor],
                divided: distributed.Divided, optimiser: torch.optim.Adam, generator: torch.Generator,
                mixing: MixingBuffer) -> None:
    """Every rank takes part, rank 0 keeps and writes. The tensors are whole, however the dictionary was divided."""
    names = _names(optimiser, divided.dictionary)
    parts = [(f"dictionary/{name}", name, value) for name, value in divided.dictionary.state_dict().items()]
    for index, slots in optimiser.state_dict()["state"].items():
        parts += [(f"optimiser/{index}/{k}", names[index], v) for k, v in slots.items()]
    state = {}
    for key, name, part in parts:
        whole = divided.whole(name, part) if part.ndim else part
        if not divided.ranks.rank:
            state[key] = whole.to("cpu", copy=True)
    if divided.ranks.rank:
        return
    state |= {f"buffer/{k}": v.clone() for k, v in mixing.state().items()}
    state |= {f"sums/{k}": v for k, v in sums.items()}
    state["generator"] = generator.get_state()
    with new_folder(folder) as place:
        write_tensors(place / "state.safetensors", state)
        write_json(place / "state.json", {"step": step, "history": history})


def _names(optimiser: torch.optim.Adam, dictionary: Dictionary) -> list[str]:
    """Name of each parameter, in the optimiser's order."""
    names = {id(p): name for name, p in dictionary.named_parameters()}
    return [names[id(p)] for group in optimiser.param_groups for p in group["params"]]


def _resume(folder: Path, divided: distributed.Divided, optimiser: torch.optim.Adam, generator: torch.Generator,
            mixing: MixingBuffer) -> tuple[int, list[dict[str, float]], dict[str, Tensor]]:
    facts = json.loads((folder / "state.json").read_text())
    state = read_tensors(folder / "state.safetensors")

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    divided.load(under("dictionary/"))
    names = _names(optimiser, divided.dictionary)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in under("optimiser/").items():
        index, _, key = name.partition("/")
        slots.setdefault(int(index), {})[key] = divided.part(names[int(index)], value) if value.ndim else value
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    generator.set_state(state["generator"])
    mixing.restore(under("buffer/"))
    return facts["step"], facts["history"], under("sums/")


def discard_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a finished training."""
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
