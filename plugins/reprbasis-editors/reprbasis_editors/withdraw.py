"""Editors `withdraw` and `as-if`: linear algebra for answers of many tokens, each with a change of its own size.

    D = V K^T (K K^T + w C + l I)^-1      K: what an MLP's output matrix reads where the change is wanted, V: the change wanted

`withdraw` wants less probability of every answer's token and reads off the final stream how much less; `as-if` wants what the MLP
writes in the corrupted prompt. C is the second moment of what is read in the texts to keep.

Shapes: N places, D residual width, I width of what a component reads, V vocabulary.
"""

from typing import ClassVar

import torch
from torch import Tensor

from reprbasis.errors import DataError
from reprbasis.interfaces.editor import Editor, EditPlan, EditRequest
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.kits.components import logits_of, through_norm
from reprbasis.kits.prefixes import captured, holders, last_logits
from reprbasis.runtime.basis import Basis
from reprbasis.sites import Site

from .config import AsIfConfig, WithdrawConfig
from .local import prior
from .parts import Part, read_in
from .scaled import kept, together
from .search import Judge

_NEAR = 0.1
"""Nats that a token may be above its goal."""


class Withdraw(Editor[WithdrawConfig]):
    """Each answer token's log-probability falls to the goal, by the least change of one late MLP's output there.

    The size of each change is known without a search: the final stream before and after differ by what the MLP writes (exactly,
    in the last block; nearly, in those before). What the least squares leave undone is asked for again, a forward each round.
    """

    locality: ClassVar[str] = "closed"

    @torch.no_grad()
    def edit(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> EditPlan:
        """See the class.

        Raises:
            DataError: there is nothing to change, or the first round exceeds the budget already.
            SiteError: there is no such layer.
        """
        c = self.config
        if not request.change:
            raise DataError("there is nothing to change", do="give a request with at least one batch of prompts")
        layer = max(model.info.n_layers - 3, 0) if c.layer is None else c.layer
        part, end = Part.parse(f"mlp.{layer}", model), Site("resid", model.info.n_layers - 1)
        answers = [item.targets.answer for item in request.change]
        if any(a is None for a in answers):
            raise DataError("an edit needs answers", do="give batches whose targets name the answer to change")
        said = torch.cat([a[:, 0] for a in answers if a is not None])
        goals = torch.cat([_out_of_context(model, item.clean, c.context) for item in request.change]) if c.goal is None else None
        goals = said.new_full(said.shape, c.goal, dtype=torch.float32) if goals is None else goals.gather(1, said[:, None])[:, 0]
        first = [captured(model, item.clean, part.sites) for item in request.change]
        keys = torch.cat([part.keys_in(model, run, run.batch.last()[:, None])[:, 0] for run in first]).double().T
        texts = kept(model, request, c.keep_tokens)
        known = read_in(model, {part: keys}, texts)[part]
        inverse = torch.linalg.inv(keys @ keys.T + prior(keys, known.moment, c.keep_weight, c.ridge)) @ keys
        judge = Judge(model, (), texts, c.budget_tokens, layer)
        wanted, plan = keys.new_zeros(model.info.d_model, keys.shape[1]), EditPlan()
        trials: list[dict[str, float]] = []
        for _ in range(c.rounds):
            with plan.applied(model):
                x = torch.cat([_at_last(model, item.clean, end) for item in request.change])
            more, excess = _needed(model, x, said, goals)
            trials.append({"over_the_goal": float((excess > _NEAR).double().mean())})
            if not bool(more.any()):
                break
            wanted = wanted + more.T
            trial = part.plan(model, (inverse @ wanted.T).T)
            with trial.applied(model):
                trials[-1]["kl_keep"] = kl = judge.kl()
            if kl > c.budget:
                if not plan.deltas:
                    raise DataError(f"the weakest edit tried changes the texts to keep by {kl:.3g} nats a token",
                                    do=f"raise the budget of {c.budget:g}, or the goal, or edit a lower layer")
                break
            plan = trial
        return EditPlan(plan.deltas, {"editor": self.full_name, "locality": self.locality, "components": [str(part)],
                                      "places": len(said), "trials": trials, "options": c.model_dump(mode="json")})


def _at_last(model: ModelAdapter, batch: TokenBatch, site: Site) -> Tensor:
    """[B, D] a site at each row's last token."""
    return captured(model, batch, [site])[site][torch.arange(len(batch.ids), device=batch.ids.device), batch.last()]


def _out_of_context(model: ModelAdapter, batch: TokenBatch, tokens: int) -> Tensor:
    """[B, V] log-probabilities after the last tokens of each row, seen alone."""
    rows = [ids[mask][-tokens:].cpu() for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    short = TokenBatch.pad([TokenSequence(ids, sequence=i) for i, ids in enumerate(rows)], pad_id=model.pad_id)
    return last_logits(model, short.to(batch.ids.device)).log_softmax(-1)


def _needed(model: ModelAdapter, x: Tensor, said: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D] least change, along the gradient, of final streams [N, D] after which tokens [N] have log-probability [N] at most;
    and [N] how far above it they are.
    """
    out, rows = model.unembedding(), torch.arange(len(x), device=x.device)

    def log_probs(x: Tensor) -> Tensor:
        return logits_of(out, x).float().log_softmax(-1)

    found = log_probs(x)
    slope = through_norm(out, x, out.weight[said].float() - found.exp() @ out.weight.float()).float()
    # near certainty the gradient of log p vanishes in length, not in direction: the runner-up is what it points to
    way = slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-30)
    low, high = x.new_zeros(len(x)), x.norm(dim=1)
    for _ in range(16):
        middle = (low + high) / 2
        over = log_probs(x - middle[:, None] * way)[rows, said] > goal
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    excess = found[rows, said] - goal
    return -(high * (excess > 0))[:, None].double() * way.double(), excess


class AsIf(Editor[AsIfConfig]):
    """MLPs write at the prompts what they write at the corrupted ones: as if something else were spoken of.

    At the tokens that differ, layer by layer upwards with those below edited, each MLP is to give what it gives in the corrupted
    prompt. If that speaks of a stranger, nothing is known of the one spoken of, and whatever the model says of
    strangers it says of this one: no answer has to be chosen.
    """

    locality: ClassVar[str] = "closed"

    @torch.no_grad()
    def edit(self, model: ModelAdapter, basis: Basis, request: EditRequest) -> EditPlan:
        """See the class.

        Raises:
            DataError: a batch has no corrupted prompts, or the edit exceeds the budget at every strength tried.
            SiteError: there is no such layer.
        """
        c = self.config
        if not request.change or any(item.corrupt is None for item in request.change):
            raise DataError("there is nothing to be as if", do="give prompts with corrupted ones")
        layers = range(model.info.n_layers) if c.layers is None else c.layers
        texts = kept(model, request, c.keep_tokens)
        pairs = [_whole(item.clean, item.corrupt) for item in request.change if item.corrupt is not None]
        wanted = [model.forward(other, capture=[Site("mlp_out", n) for n in layers], logits="none") for _, other, _ in pairs]
        plan, size = EditPlan(), {}
        for layer in layers:
            part, site = Part.parse(f"mlp.{layer}", model), Site("mlp_out", layer)
            with plan.applied(model):
                keys, short = [], []
                for (clean, _, where), goal in zip(pairs, wanted, strict=True):
                    run = model.forward(clean, capture=part.sites, stop_at=site, logits="none")
                    every = torch.arange(clean.shape[1], device=clean.ids.device).expand(clean.shape)
                    keys.append(part.keys_in(model, run, every)[where].double())
                    short.append((goal[site] - run[site])[where].double())
                k, v = torch.cat(keys).T, torch.cat(short).T
                moment = read_in(model, {part: k}, texts)[part].moment
                change = torch.linalg.solve(k @ k.T + prior(k, moment, c.keep_weight, c.ridge), k @ v.T).T
                step = part.plan(model, c.strength * change)
            size[str(part)] = float(change.norm() / part.weight(model).norm())
            plan = together(plan, step)
        judge = Judge(model, (), texts, c.budget_tokens, min(layers))
        with plan.applied(model):
            kl = judge.kl()
        if kl > c.budget:
            raise DataError(f"the edit changes the texts to keep by {kl:.3g} nats a token",
                            do=f"raise the budget of {c.budget:g} or `keep_weight`, lower the strength, or edit fewer layers")
        return EditPlan(plan.deltas, {"editor": self.full_name, "locality": self.locality, "components": size, "kl_keep": kl,
                                      "options": c.model_dump(mode="json")})


def _whole(clean: TokenBatch, corrupt: TokenBatch) -> tuple[TokenBatch, TokenBatch, Tensor]:
    """The longest rows of both, and [R, T] where they differ."""
    rows, _ = holders(corrupt)
    clean, corrupt = clean.take(rows), corrupt.take(rows)
    return clean, corrupt, clean.mask & (clean.ids != corrupt.ids)
