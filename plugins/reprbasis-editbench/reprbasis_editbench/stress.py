"""Is it gone, or only hidden? Relearning, coarser weights, and what every layer still says.

Shapes: B prompts, D residual width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from reprbasis.interfaces.editor import EditPlan
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.kits.components import logits_of
from reprbasis.kits.tuning import inner, restored
from reprbasis.runtime.batches import best_of
from reprbasis.sites import Site

R = TypeVar("R")


def coarser(model: ModelAdapter, bits: int, read: Callable[[], R]) -> R:
    """What `read` finds with all inner matrices rounded to nearest on 2^bits - 1 levels, symmetric, one scale a row."""
    names = [name for name in inner(model) if model.parameters()[name].ndim == 2]
    most = 2 ** (bits - 1) - 1
    with restored(model, names) as (parameters, _):
        with torch.no_grad():
            for p in parameters.values():
                scale = p.abs().amax(1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny) / most
                p.copy_((p / scale).round() * scale)
        return read()


def relearn(model: ModelAdapter, change: Sequence[ContrastBatch], read: Callable[[], R], *, steps: Sequence[int],
            lr: float) -> dict[int, R]:
    """What `read` finds after so many steps of plain SGD (full back-propagation) towards the answers of a few prompts.

    Args:
        model: in its edited state.
        change: the prompts shown again, one batch a step, in turn.
        read: measures.
        steps: when to measure.
        lr: the step is `lr` times the norm of the weights along the gradient, so that it means the same for every model.
    """
    found: dict[int, R] = {}
    with restored(model, inner(model)) as (parameters, _):
        for p in parameters.values():
            p.requires_grad_()
        size = lr * float(torch.stack([p.detach().norm() for p in parameters.values()]).norm())
        for step in range(1, max(steps) + 1):
            item = change[(step - 1) % len(change)]
            logits = model.forward(item.clean, grad=True, logits="last").logits[:, 0].float()
            loss = (logits.logsumexp(1) - best_of(logits, item.targets.answer)).mean()
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            with torch.no_grad():
                norm = torch.stack([g.norm() for g in gradients if g is not None]).norm().clamp_min(1e-12)
                for p, g in zip(parameters.values(), gradients, strict=True):
                    if g is not None:
                        p.sub_(g * (size / norm))
            if step in steps:
                found[step] = read()
    return found


@torch.no_grad()
def residue(model: ModelAdapter, given: Sequence[ContrastBatch]) -> Tensor:
    """[layers, B] logit difference that the stream after each block holds, read through final norm and unembedding."""
    sites = [Site("resid", i) for i in range(model.info.n_layers)]
    out = model.unembedding()
    columns = []
    for item in given:
        result = model.forward(item.clean, capture=sites, logits="none")
        at, ids = item.clean.last(), torch.arange(len(item.clean.ids), device=model.device)
        layers = []
        for site in sites:
            logits = logits_of(out, result[site][ids, at])
            layers.append(best_of(logits, item.targets.answer) - best_of(logits, item.targets.wrong))
        columns.append(torch.stack(layers).double().cpu())
    return torch.cat(columns, dim=1)


def changed_bytes(plan: EditPlan) -> int:
    """Bytes that the changed entries take, stored as they are (rows and columns that stay zero are left out), and codebooks."""
    books = sum(t.numel() * t.element_size() for b in plan.books for t in (b.keys, b.radius, b.shift))
    return books + sum(int(_touched(d.reshape(len(d), -1)).sum()) * d.element_size() for d in plan.deltas.values())


def _touched(x: Tensor) -> Tensor:
    """Rows and columns that are not all zero."""
    return (x != 0).any(1, keepdim=True) & (x != 0).any(0, keepdim=True)
