"""One editable component: its weight, what it reads (keys), what it writes; how components are chosen.

Shapes: B prompts, T tokens, D residual width (of values the width G E of all value heads, where a weight's output is meant), I
width of what a component reads (head width, MLP width, or of values the residual width), N keys.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy
import torch
from scipy.optimize import nnls
from torch import Tensor

from reprbasis.errors import CapabilityError, DataError, SiteError
from reprbasis.interfaces.editor import EditPlan
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.model import ForwardResult, ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.kits.components import answer_rows, heads_in_context, logits_of, neurons, stream_before, through_norm, unembedded
from reprbasis.kits.weights import delta_of
from reprbasis.runtime.batches import best_of, last_logits
from reprbasis.sites import Site


@dataclass(frozen=True)
class Part:
    """A head's slice of an output matrix (`head.3.1`), which no other head shares, an MLP's output matrix (`mlp.3`), or the
    value matrix of all heads of a layer (`values.3`): what they take along from a token, wherever they write it.
    """

    layer: int
    head: int | None = None
    values: bool = False

    def __str__(self) -> str:
        if self.head is not None:
            return f"head.{self.layer}.{self.head}"
        return f"{'values' if self.values else 'mlp'}.{self.layer}"

    @classmethod
    def parse(cls, text: str, model: ModelAdapter) -> "Part":
        """From its name.

        Raises:
            SiteError: the model has no such layer or head.
        """
        kind, *numbers = text.split(".")
        layer, *head = map(int, numbers)
        if layer >= model.info.n_layers or (head and head[0] >= model.info.n_heads):
            raise SiteError(f"the model has no component {text}",
                            do=f"it has {model.info.n_layers} layers of {model.info.n_heads} heads, counted from 0")
        return cls(layer, *head, values=kind == "values")

    def weight(self, model: ModelAdapter) -> Tensor:
        """[D, I] view of the weight; of values [G E, D]."""
        if self.values:
            return model.attention(self.layer).W_V.flatten(0, 1)
        return model.mlp(self.layer).W_out if self.head is None else model.attention(self.layer).W_O[self.head]

    @property
    def sites(self) -> tuple[Site, ...]:
        """What has to be captured to know its keys."""
        before = stream_before(self.layer)
        if self.values or self.head is not None:
            return (before,)
        return before, Site("attn_out", self.layer), Site("mlp_out", self.layer)

    def keys(self, model: ModelAdapter, batch: TokenBatch, at: Tensor) -> Tensor:
        """[B, Q, I] what the weight reads at token positions [B, Q] of each row. Cost: a forward up to its layer."""
        return self.keys_in(model, model.forward(batch, capture=self.sites, logits="none"), at)

    def keys_in(self, model: ModelAdapter, result: ForwardResult, at: Tensor) -> Tensor:
        """The same from a forward that captured its `sites`.

        Raises:
            CapabilityError: the MLP reads something else than the stream after the attention.
        """
        batch, before = result.batch, result[self.sites[0]]
        if self.values:
            return model.attention(self.layer).norm(before)[torch.arange(len(at), device=at.device)[:, None], at]
        if self.head is not None:
            return heads_in_context(model.attention(self.layer), before, batch, at).read[self.head]
        rows = torch.arange(len(at), device=at.device)[:, None]
        weights, x = model.mlp(self.layer), (before + result[self.sites[1]])[rows, at]
        read = neurons(weights, weights.norm(x))
        out = read @ weights.W_out.T if weights.b_out is None else read @ weights.W_out.T + weights.b_out
        if not torch.allclose(out, result[self.sites[2]][rows, at], rtol=1e-2, atol=1e-2 * float(out.abs().max())):
            raise CapabilityError(f"the MLP of layer {self.layer} does not read the stream after the attention",
                                  do="edit heads instead")
        return read

    def wanted(self, model: ModelAdapter, result: ForwardResult, at: Tensor, target: Tensor) -> Tensor:
        """What of the weight's output is written along a direction, so that `wanted . output` is how far.

        Args:
            model: the model.
            result: a forward that captured the `sites`.
            at: [B, 1] the token that is read.
            target: [B, D] unit direction at the answer.

        Returns:
            [B, D] the target itself; of values [B, G E] the target through the output matrices of all heads, each by the
            attention that the answer's position pays to the token.
        """
        if not self.values:
            return target
        weights, last = model.attention(self.layer), result.batch.last()
        share = heads_in_context(weights, result[self.sites[0]], result.batch, last).attention
        share = share[:, torch.arange(len(last), device=last.device), at[:, 0]].double()
        pulled = torch.einsum("hb,hde,bd->bhe", share, weights.W_O.double(), target)
        out = pulled.new_zeros(len(pulled), len(weights.W_V), pulled.shape[2])
        return out.index_add(1, weights.kv_of, pulled).flatten(1)

    def plan(self, model: ModelAdapter, change: Tensor) -> EditPlan:
        """The plan that adds `change` [D, I] to the weight."""
        name, delta = delta_of(model, self.weight(model), change)
        return EditPlan({name: delta})


def place(item: ContrastBatch, at: str = "answer") -> Tensor:
    """[B, 1] position whose logits give the answer, or the last position of a role.

    Raises:
        DataError: the batch has no such role, or its subject is not in the prompt.
    """
    if at == "answer":
        return item.clean.last()[:, None]
    if at not in item.roles or not item.roles[at].shape[1]:
        raise DataError(f"the prompts to change have no role '{at}'" + (f", only {', '.join(item.roles)}" if item.roles else ""),
                        do="edit at the answer (at: answer), or mark the subject, which must stand in the prompt")
    return item.roles[at][:, -1:]


def alone(item: ContrastBatch) -> list[ContrastBatch]:
    """Each prompt of a batch for itself."""
    out = []
    for i in range(len(item.clean.ids)):
        row = torch.tensor([i], device=item.clean.ids.device)
        answer, wrong = (None if t is None else t[row] for t in (item.targets.answer, item.targets.wrong))
        out.append(ContrastBatch(item.clean.take(row), None if item.corrupt is None else item.corrupt.take(row),
                                 Targets(answer, wrong), {name: at[row] for name, at in item.roles.items()}))
    return out


@torch.no_grad()
def with_subject(model: ModelAdapter, item: ContrastBatch) -> ContrastBatch:
    """The same prompts with a role `subject`; where nobody marked it, the token without which the answer loses most.

    Each token but the first is replaced by what the model finds likeliest there besides, so that the prompt stays a prompt. Rows
    of one batch have their subject at one place. Cost: a forward of T prompts for each prompt.
    """
    if "subject" in item.roles or item.clean.extra or item.targets.answer is None:
        return item
    every = model.forward(item.clean, logits="all").logits
    assert every is not None
    total = torch.zeros(item.clean.shape[1], dtype=torch.float64)
    for padded, mask, logits, answer in zip(item.clean.ids, item.clean.mask, every, item.targets.answer, strict=True):
        ids = padded[mask]
        others = logits[mask][:-1].scatter(1, ids[1:, None], -torch.inf).argmax(1)
        changed = ids.repeat(len(ids) - 1, 1)
        changed[:, 1:].diagonal().copy_(others)
        batch = TokenBatch.pad([TokenSequence(row.cpu(), sequence=n) for n, row in enumerate([ids, *changed])],
                               pad_id=model.pad_id)
        said = last_logits(model, batch.to(ids.device)).log_softmax(-1)
        left = best_of(said, answer[None].expand(len(said), -1)).double().cpu()
        total[1:len(ids)] += left[0] - left[1:]
    total[0] = -torch.inf
    at = total.argmax().expand(len(item.clean.ids), 1).to(item.clean.ids.device)
    return replace(item, roles={**item.roles, "subject": at})


def elsewhere(item: ContrastBatch, at: str, texts: Sequence[TokenBatch], count: int) -> TokenBatch | None:
    """The role's tokens of the first prompt after the beginnings of `count` texts: other places where the same is spoken of.

    What a token's stream holds depends on what stands before it; an edit that knows one wording alone may hold in no other.
    """
    parts = [(b, i, b.segments[i] == k) for b in texts for i in range(len(b.ids)) for k in range(int(b.segments[i].max()) + 1)]
    parts.sort(key=lambda part: (int(part[2].sum()), int(part[0].sequences[part[1], part[2]][0])))
    if at == "answer" or not count or not parts or item.clean.extra:
        return None
    said = item.clean.ids[0][item.roles[at][0]].cpu()
    chosen = [b.ids[i, here].cpu() for b, i, here in parts[::max(1, len(parts) // count)][:count]]
    batch = TokenBatch.pad([TokenSequence(torch.cat([ids[:4 + i % 5], said]), sequence=i) for i, ids in enumerate(chosen)])
    return batch.to(item.clean.ids.device)


@torch.no_grad()
def peers(model: ModelAdapter, item: ContrastBatch, at: str, count: int) -> tuple[TokenBatch, Tensor] | None:
    """The first prompt with other words in the place of its subject, and where the component is read in each [N, 1].

    The model itself names them: half are the tokens it finds likeliest there, half those whose unembedding rows are most like
    that of the subject's last token (all, where nothing stands before the subject). They are what an edit of one subject spoils
    first, and nobody has to list them. None without a subject.

    Args:
        model: the model.
        item: prompts with a role `at`, or with `at` = `answer` a role `subject`.
        at: see `place`.
        count: how many words.
    """
    role = "subject" if at == "answer" else at
    if not count or role not in item.roles or not item.roles[role].shape[1] or item.clean.extra:
        return None
    ids, where = item.clean.ids[0][item.clean.mask[0]], item.roles[role][0]
    first, last = int(where[0]), int(where[-1])
    rows = model.unembedding().weight.float()
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    alike = rows @ rows[ids[last]]
    chosen: list[int] = []
    if first:
        before = model.forward(item.clean.take(torch.tensor([0], device=ids.device)), logits="all").logits
        assert before is not None
        likely = before[0, first - 1].clone()
        likely[ids[first:last + 1]] = -torch.inf
        chosen = likely.topk(count // 2).indices.tolist()
    alike[torch.cat([ids[first:last + 1], torch.tensor(chosen, dtype=torch.long, device=ids.device)])] = -torch.inf
    chosen += alike.topk(count - len(chosen)).indices.tolist()
    head, tail = ids[:first].cpu(), ids[last + 1:].cpu()
    batch = TokenBatch.pad([TokenSequence(torch.cat([head, torch.tensor([i]), tail]), sequence=n) for n, i in enumerate(chosen)],
                           pad_id=model.pad_id).to(ids.device)
    return batch, batch.last()[:, None] if at == "answer" else torch.full((len(chosen), 1), first, device=ids.device)


def targets_of(model: ModelAdapter, item: ContrastBatch) -> Tensor:
    """[B, D] unit direction from the wrong answer to the answer."""
    rows = answer_rows(unembedded(model), item.targets).double()
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)


@torch.no_grad()
def ahead(model: ModelAdapter, item: ContrastBatch, by: float) -> Tensor:
    """[B, D] unit direction, away from the least change of the last stream that puts the wrong answer ahead of every other token.

    The way from answer to wrong answer spends half of its length on lowering the answer far below all others, and tokens like
    the wrong answer come along. This one solves `min |d|` with `(u_wrong - u_r) . d >= l_r - l_wrong + by` for every token r (u
    the unembedding rows through the norm, l the logits): least distance programming (Lawson & Hanson 1974, chapter 23), with
    the tokens that are in the way added a few at a time. Answers shall fall as far behind as they were ahead, so that they
    are behind in other wordings, too, where the change arrives in part.

    Args:
        model: as it is now, earlier edits in force.
        item: prompts with wrong answers, of which the first is meant.
        by: logits that it shall be ahead, to first order.

    Raises:
        DataError: a prompt has no wrong answer, or no change puts it ahead.
    """
    if item.targets.wrong is None or bool((item.targets.wrong[:, 0] < 0).any()):
        raise DataError("an edit against all other tokens needs to know what shall be said", do="give wrong answers")
    end, out = Site("resid", model.info.n_layers - 1), model.unembedding()
    run = model.forward(item.clean, capture=[end], stop_at=end, logits="none")
    rows, at = torch.arange(len(item.clean.ids), device=model.device), item.clean.last()
    answers = item.targets.wrong[:, :0] if item.targets.answer is None else item.targets.answer
    found = []
    for x, new, known in zip(run[end][rows, at], item.targets.wrong[:, 0].tolist(), answers, strict=True):
        old = known[known >= 0]
        logits = logits_of(out, x).double()
        slope = through_norm(out, x.expand(len(out.weight), -1), out.weight).double()
        need = logits - logits[new] + by
        need[old] += (logits[old] - logits[new]).clamp_min(0)
        need[new] = -torch.inf
        short, d, against = need.clone(), torch.zeros_like(slope[0]), old
        for _ in range(_ROUNDS):
            against = torch.cat([against, short.topk(_RIVALS).indices]).unique()
            d = _least(slope[new] - slope[against], need[against])
            short = need - (slope[new] - slope) @ d
            short[new] = -torch.inf
            if float(short.max()) <= 1e-3 * by:
                break
        found.append(-d / d.norm().clamp_min(1e-30))
    return torch.stack(found)


_ROUNDS, _RIVALS = 12, 16
"""Of tokens in the way: how many are added at a time, how often."""


def _least(rows: Tensor, need: Tensor) -> Tensor:
    """[D] the shortest d with `rows d >= need`, from [K, D] and [K]."""
    size = need.abs().max().clamp_min(1e-30)
    system = torch.cat([rows.T, need[None] / size]).cpu().numpy()
    wish = numpy.zeros(len(system))
    wish[-1] = 1.0
    short = torch.from_numpy(system @ nnls(system, wish, maxiter=50 * len(need))[0] - wish)
    if float(short[-1].abs()) < 1e-9:
        raise DataError("no change of the last stream puts the new answer ahead of all others", do="choose another answer")
    return (-short[:-1] / short[-1] * float(size)).to(rows)


@dataclass
class Kept:
    """What a component reads in the texts to keep.

    Args:
        moment: [I, I] mean of k k^T over all tokens, in float64; zeros without texts.
        near: [I, M] the keys most like those to change.
    """

    moment: Tensor
    near: Tensor


def read_in(model: ModelAdapter, parts: Mapping[Part, Tensor], texts: Sequence[TokenBatch], near: int = 0) -> dict[Part, Kept]:
    """What components read in the texts. Cost: one forward of the texts for all of them.

    Args:
        model: the model.
        parts: component -> keys to change, [I, N].
        texts: to keep.
        near: so many tokens, those whose keys have the largest cosine to any of the keys to change, are given themselves.
    """
    totals = {p: like.new_zeros(len(like), len(like), dtype=torch.float64) for p, like in parts.items()}
    best = {p: (like.new_zeros(0, dtype=torch.float64), like.new_zeros(0, len(like), dtype=torch.float64))
            for p, like in parts.items()}
    count = 0
    for batch in texts:
        result = model.forward(batch, capture={site for part in parts for site in part.sites}, logits="none")
        every = torch.arange(batch.shape[1], device=model.device).expand(batch.shape)
        count += int(batch.mask.sum())
        for part, like in parts.items():
            rows = part.keys_in(model, result, every)[batch.mask].double()
            totals[part] += rows.T @ rows
            if near:
                alike = (rows @ like.double() / like.norm(dim=0)).amax(1) / rows.norm(dim=1).clamp_min(1e-30)
                value, held = (torch.cat(pair) for pair in zip(best[part], (alike, rows), strict=True))
                first = value.topk(min(near, len(value))).indices
                best[part] = value[first], held[first]
    return {part: Kept(total / max(count, 1), best[part][1].T) for part, total in totals.items()}


def hold(model: ModelAdapter, known: Mapping[Part, Kept], more: Sequence[tuple[TokenBatch, Tensor] | None]) -> None:
    """Further tokens ([B, 1] positions of each batch) are held each for itself. Cost: one forward a batch."""
    for batch, at in (found for found in more if found is not None):
        result = model.forward(batch, capture={site for part in known for site in part.sites}, logits="none")
        for part, kept in known.items():
            kept.near = torch.cat([kept.near, part.keys_in(model, result, at)[:, 0].double().T], 1)


@dataclass(frozen=True)
class Candidate:
    """A component and why: mean over prompts of P and gain along the contrast."""

    part: Part
    p: float
    gain: float


def candidates(model: ModelAdapter, change: Sequence[ContrastBatch], among: str) -> list[Candidate]:
    """Components that write towards the answer in context, largest P times gain first."""
    found = [c for c in (Candidate(part, *values) for part, values in _written(model, change, among)) if c.gain > 0 and c.p > 0]
    return sorted(found, key=lambda c: -c.p * c.gain)


def _written(model: ModelAdapter, change: Sequence[ContrastBatch], among: str) -> Iterator[tuple[Part, tuple[float, float]]]:
    totals: dict[Part, Tensor] = {}
    count = 0
    for item in change:
        at, rows = item.clean.last(), torch.arange(len(item.clean.ids), device=model.device)
        sites = [s for i in range(model.info.n_layers) for s in (stream_before(i), Site("mlp_out", i))]
        result, target = model.forward(item.clean, capture=sites, logits="none"), targets_of(model, item)
        count += len(rows)
        for layer in range(model.info.n_layers):
            out: list[tuple[Part, Tensor]] = []
            if among != "mlps":
                heads = heads_in_context(model.attention(layer), result[stream_before(layer)], item.clean, at)
                out += [(Part(layer, h), y) for h, y in enumerate(heads.written)]
            if among != "heads":
                out.append((Part(layer), result[Site("mlp_out", layer)][rows, at]))
            for part, y in out:
                gain = (y.double() * target).sum(-1)
                p = gain / y.double().norm(dim=-1).clamp_min(1e-30)
                totals[part] = totals.get(part, 0) + torch.stack([p.sum(), gain.sum()])
    for part, total in totals.items():
        p, gain = (total / count).tolist()
        yield part, (p, gain)


@torch.no_grad()
def readers(model: ModelAdapter, change: Sequence[ContrastBatch], at: str) -> dict[Part, float]:
    """Value matrices by how strongly what their heads take from a token (the last of role `at`) is written along the contrast:
    mean length of `Part.wanted`, largest first. One forward of the prompts.
    """
    parts = [Part(n, values=True) for n in range(model.info.n_layers)]
    totals, count = dict.fromkeys(parts, 0.0), 0
    for item in change:
        result = model.forward(item.clean, capture=[p.sites[0] for p in parts], logits="none")
        count += len(item.clean.ids)
        for part in parts:
            totals[part] += float(part.wanted(model, result, place(item, at), targets_of(model, item)).norm(dim=1).sum())
    return {part: total / count for part, total in sorted(totals.items(), key=lambda pair: -pair[1])}
