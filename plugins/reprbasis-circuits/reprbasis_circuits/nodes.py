"""What all finders share: from options to a prepared run, nodes as a flat list, and circuits made of them.

Shapes: M masks, N nodes, R rows of a mask, C latents that take part, K latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from reprbasis.errors import DataError, SiteError
from reprbasis.interfaces.finder import Circuit, Setup
from reprbasis.interfaces.metric import Metric, Targets
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch, ScoreTable
from reprbasis.kits.circuits import Runner, common_prefix
from reprbasis.kits.nodes import Places
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import NodesConfig


def setup_of(config: NodesConfig, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch]) -> Setup:
    """The options resolved against a model, a basis and prompts.

    Raises:
        SiteError: the basis has none of the sites.
        DataError: masks per token position, and roles are at different positions in different prompts.
    """
    sites = tuple(s for s in model.info.select(config.sites) if s in basis.sites)
    if not sites:
        raise SiteError(f"the basis has none of the sites {config.sites}",
                        do=f"it covers {', '.join(map(str, basis.sites[:8]))} ...")
    roles = Places.of("role", batches).names if config.index == "role" else ()
    if config.index == "token" and len({_layout(item) for item in batches if item.roles}) > 1:
        raise DataError("the prompts have several layouts: a token position does not mean the same in all of them",
                        do="use index: role, or one template of the task")
    protect = common_prefix(batches) if config.protect == "auto" else config.protect
    return Setup(sites, config.ablation, config.error, config.index, roles, protect)


def _layout(item: ContrastBatch) -> tuple[Any, ...]:
    return item.clean.shape[1], tuple((name, tuple(at[0].tolist())) for name, at in sorted(item.roles.items()))


@dataclass(frozen=True)
class Nodes:
    """A flat list of nodes.

    Args:
        spans: site -> slice of the list.
        places: site -> [n] flat places in a mask [R, C + 1].
        rows: R.
        widths: site -> C + 1.
    """

    spans: Mapping[Site, slice]
    places: Mapping[Site, Tensor]
    rows: int
    widths: Mapping[Site, int]

    @classmethod
    def of(cls, runner: Runner, *, candidates: Literal["active", "all"] = "active") -> "Nodes":
        """Latents of the run that are active at a row (or all), and one error a row if errors are nodes."""
        spans, places, widths, first = {}, {}, {}, 0
        used = torch.zeros(len(runner.places), dtype=torch.bool, device=runner.model.device)
        for p in runner.prompts:
            used[p.rows[p.rows >= 0]] = True
        for site, coder in runner.coders.items():
            active = runner.active[site] if coder.latents is None else runner.active[site][:, coder.latents]
            on = active if candidates == "active" else torch.ones_like(active)
            error = used[:, None] & (runner.setup.error == "node")
            where = torch.cat([on & used[:, None], error], 1)
            places[site] = where.flatten().nonzero()[:, 0]
            widths[site] = where.shape[1]
            spans[site] = slice(first, first + len(places[site]))
            first += len(places[site])
        return cls(spans, places, len(runner.places), widths)

    def __len__(self) -> int:
        return sum(len(p) for p in self.places.values())

    def dense(self, mask: Tensor) -> dict[Site, Tensor]:
        """[M, N] -> site -> [M, R, C + 1], differentiable."""
        out = {}
        for site, place in self.places.items():
            empty = mask.new_zeros(len(mask), self.rows * self.widths[site])
            out[site] = empty.index_copy(1, place, mask[:, self.spans[site]]).view(len(mask), self.rows, -1)
        return out


def circuit(runner: Runner, nodes: Nodes, kept: Tensor, details: Mapping[str, Any], scores: ScoreTable | None = None) -> Circuit:
    """The circuit of the nodes `kept` [N] bool."""
    masks = {}
    for site, mask in nodes.dense(kept[None].to(torch.uint8)).items():
        table = torch.zeros(nodes.rows, runner.basis.d_dict + 1, dtype=torch.bool)
        latents, here = runner.coders[site].latents, mask[0].bool().cpu()
        table[:, -1] = here[:, -1]
        if latents is None:
            table[:, :-1] = here[:, :-1]
        else:
            table[:, latents.cpu()] = here[:, :-1]
        masks[site] = table
    return wrap(runner, masks, details, scores)


def wrap(runner: Runner, masks: Mapping[Site, Tensor], details: Mapping[str, Any], scores: ScoreTable | None = None) -> Circuit:
    """A circuit with its setup, and the values of ablated nodes where they do not depend on the prompt; masks [R, K + 1]."""
    setup = runner.setup
    shaped = {s: m[0] if setup.index == "shared" else m for s, m in masks.items()}
    paired = setup.ablation == "corrupt"
    fill = {} if paired else {s: v.to("cpu", runner.dtype) for s, v in runner.fill.codes.items()}
    error_fill = {} if paired else {s: v.to("cpu", runner.dtype) for s, v in runner.fill.errors.items()}
    return Circuit(shaped, scores, {**details, "setup": setup.facts(), "n": runner.n}, fill, error_fill)


def split(batches: Sequence[ContrastBatch], size: int) -> list[ContrastBatch]:
    """The same prompts in batches of at most `size`."""
    return [part(item, slice(at, at + size)) for item in batches for at in range(0, item.clean.shape[0], size)]


def first(batches: Sequence[ContrastBatch], prompts: int) -> list[ContrastBatch]:
    """The first prompts."""
    out: list[ContrastBatch] = []
    for item in batches:
        if prompts > 0:
            out.append(item if len(item.clean.ids) <= prompts else part(item, slice(0, prompts)))
            prompts -= len(item.clean.ids)
    return out


def part(item: ContrastBatch, rows: slice) -> ContrastBatch:
    """Some prompts of a batch."""
    at = torch.arange(len(item.clean.ids), device=item.clean.ids.device)[rows]
    given = item.targets
    targets = Targets(*(None if t is None else t[at] for t in (given.answer, given.wrong, given.reference)))
    return replace(item, clean=item.clean.take(at), corrupt=None if item.corrupt is None else item.corrupt.take(at),
                   targets=targets, roles={k: v[at] for k, v in item.roles.items()})


def prepare(config: NodesConfig, model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any],
            **options: Any) -> Runner:
    """The run of a finder."""
    return Runner(model, basis, setup_of(config, model, basis, batches), batches, metric, **options)
