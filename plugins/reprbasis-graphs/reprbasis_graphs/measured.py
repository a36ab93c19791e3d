"""What the drawing of a circuit needs to know, measured on prompts: what each node is worth, when it is on, what changes it.

Shapes: N prompts, B prompts of a batch, T tokens, U nodes of the circuit, K latents, D width, R rows of a mask, M masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reprbasis.interfaces.finder import Circuit
from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import Edit, ModelAdapter, Replace
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch
from reprbasis.kits.circuits import Runner, fill_of
from reprbasis.kits.intervals import Estimate, mean, ratio
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

_EMBED = Site("embed")
Node = tuple[Site, int, int]
"""(site, row of the mask, latent); latent K is the error."""


@dataclass(frozen=True)
class Worth:
    """What the circuit and its parts are worth.

    Args:
        model, circuit, empty: mean metric of the unchanged model, of the circuit, and with no node on.
        share: faithfulness, (circuit - empty) / (model - empty), with its interval.
        random: the same for random circuits of as many nodes, mean over draws.
        without: of each set of nodes asked for, the share of the model's effect that is lost when the circuit lacks it.
        nodes: how many there are to choose from.
    """

    model: Estimate
    circuit: Estimate
    empty: Estimate
    share: Estimate
    random: Estimate
    without: Sequence[float]
    nodes: int


def worth(model: ModelAdapter[Any], basis: Basis, circuit: Circuit, batches: Sequence[ContrastBatch], metric: Metric[Any],
          sets: Sequence[Sequence[Node]], *, random: int = 5, seed: int = 0) -> Worth:
    """Run the circuit, the circuit without each set of nodes, and random circuits of the same size."""
    runner = Runner(model, basis, circuit.setup, batches, metric, fill=fill_of(circuit), latents="all")
    [on] = [{s: m[0] for s, m in runner.dense([circuit]).items()}]
    masks = [on]
    for some in sets:
        less = {s: m.clone() for s, m in on.items()}
        for site, row, latent in some:
            less[site][row, latent] = 0
        masks.append(less)
    pool = {s: torch.cat([runner.active[s], torch.ones_like(runner.active[s][:, :1])], 1) for s in on}
    if circuit.setup.error != "node":
        for m in pool.values():
            m[:, -1] = False
    size, generator = circuit.size(), torch.Generator().manual_seed(seed)
    masks += [_draw(pool, size, generator, on) for _ in range(random)]
    masks.append({s: torch.zeros_like(m) for s, m in on.items()})
    values = runner.values({s: torch.stack([m[s] for m in masks]) for s in on}).double().cpu()
    whole, empty = runner.model_values.double().cpu(), values[-1]
    names: dict[tuple[int, ...], int] = {}
    rows = [tuple(r.tolist()) for item in batches for r in item.clean.shown().cpu()]
    group = torch.tensor([names.setdefault(r, len(names)) for r in rows])
    span = float((whole - empty).mean()) or 1.0
    lost = [float((values[0] - v).mean()) / span for v in values[1:1 + len(sets)]]
    drawn = values[1 + len(sets):-1].mean(0)
    return Worth(mean(whole, group, seed=seed), mean(values[0], group, seed=seed), mean(empty, group, seed=seed),
                 ratio(values[0] - empty, whole - empty, group, seed=seed), ratio(drawn - empty, whole - empty, group, seed=seed),
                 lost, sum(int(m.sum()) for m in pool.values()))


def _draw(pool: Mapping[Site, Tensor], size: int, generator: torch.Generator, like: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    flat = torch.cat([m.flatten() for m in pool.values()]).cpu()
    on = flat.nonzero()[:, 0]
    chosen = torch.zeros(len(flat))
    chosen[on[torch.randperm(len(on), generator=generator)[:size]]] = 1
    out, at = {}, 0
    for site, m in pool.items():
        out[site] = chosen[at:at + m.numel()].view(m.shape).to(like[site])
        at += m.numel()
    return out


@dataclass(frozen=True)
class Activity:
    """Each node on each prompt: activation of a latent (its largest over the tokens of its place), norm of an error.

    Args:
        clean, corrupt: [U, N]; NaN where a prompt has no such place.
    """

    clean: Tensor
    corrupt: Tensor


def activity(model: ModelAdapter[Any], basis: Basis, circuit: Circuit, batches: Sequence[ContrastBatch], runner_rows: Any,
             nodes: Sequence[Node]) -> Activity:
    """Read the nodes in the unchanged model, on both sides of every pair."""
    sides: list[list[Tensor]] = [[], []]
    for item in batches:
        for out, side in zip(sides, (item.clean, item.corrupt), strict=True):
            out.append(torch.full((len(nodes), item.clean.shape[0]), torch.nan) if side is None
                       else _values(model, basis, circuit, item, side, runner_rows, nodes))
    return Activity(*(torch.cat(s, 1) for s in sides))


def _read(model: ModelAdapter[Any], basis: Basis, sites: Sequence[Site], side: TokenBatch,
          edits: Sequence[Edit] = ()) -> dict[Site, tuple[Tensor, Tensor]]:
    return basis.states(model.forward(side, capture=sites, edits=edits, logits="none"))


def _values(model: ModelAdapter[Any], basis: Basis, circuit: Circuit, item: ContrastBatch, side: TokenBatch, places: Any,
            nodes: Sequence[Node]) -> Tensor:
    """[U, B]."""
    states, index = _read(model, basis, circuit.setup.sites, side), places.index(item)
    out = []
    for site, row, latent in nodes:
        z, e = states[site]
        value = torch.linalg.vector_norm(e, dim=-1) if latent == basis.d_dict else z[..., latent]
        here = value.masked_fill(index != row, -torch.inf).amax(1)
        out.append(here.masked_fill(here.isinf(), torch.nan).double().cpu())
    return torch.stack(out)


def from_inputs(model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], places: Any, nodes: Sequence[Node],
                rows: Sequence[int]) -> dict[tuple[int, Node], float]:
    """How much of what corrupting the prompt changes in each node, corrupting the tokens of one place alone changes.

    What is exchanged is what the tokens put into the stream, so a piece of an image can be exchanged as well as a word.

    Args:
        places: what rows are.
        nodes: which nodes.
        rows: which places; those where clean and corrupted prompts agree give nothing and are left out.

    Returns:
        (row, node) -> share: sums over prompts of the changes along the whole change, over the sum of whole changes.
    """
    sites = tuple(dict.fromkeys(site for site, _, _ in nodes))
    whole = dict.fromkeys(nodes, 0.0)
    part: dict[tuple[int, Node], float] = {}
    for item in batches:
        if item.corrupt is None:
            continue
        index = places.index(item)
        differs = item.clean.shown() != item.corrupt.shown()
        other = model.forward(item.corrupt, capture=[_EMBED], logits="none")[_EMBED]
        before, after = _read(model, basis, sites, item.clean), _read(model, basis, sites, item.corrupt)
        change = {node: _moved(before, after, node, index, basis.d_dict) for node in nodes}
        for node, moved in change.items():
            whole[node] += float(moved.square().sum(-1).sqrt().sum())
        for row in rows:
            here = differs & (index == row)
            if not bool(here.any()):
                continue
            seen = _read(model, basis, sites, item.clean, [Replace(_EMBED, other, here)])
            for node, moved in change.items():
                size = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
                along = (_moved(before, seen, node, index, basis.d_dict) * moved / size.clamp_min(1e-9)).sum()
                part[row, node] = part.get((row, node), 0.0) + float(along)
    return {(row, node): value / whole[node] for (row, node), value in part.items() if whole[node] > 0}


def _moved(a: Mapping[Site, tuple[Tensor, Tensor]], b: Mapping[Site, tuple[Tensor, Tensor]], node: Node, index: Tensor,
           width: int) -> Tensor:
    """[B, 1] or [B, D] how a node differs between two runs, summed over the tokens of its place."""
    site, row, latent = node
    here = (index == row)[..., None]
    x, y = ((s[site][1] if latent == width else s[site][0][..., latent, None]) for s in (a, b))
    return torch.where(here, y - x, torch.zeros_like(x)).sum(1).double().cpu()
