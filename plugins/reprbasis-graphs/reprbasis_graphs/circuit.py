"""A circuit as a graph: sites up, positions along, edges as shares, and what it does in words.

Shapes: N prompts, U nodes, K latents; latent K is the error.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from reprbasis.errors import DataError
from reprbasis.interfaces.artifact import Artifact
from reprbasis.interfaces.evaluator import FeatureCard
from reprbasis.interfaces.finder import Circuit
from reprbasis.interfaces.graph import Column, Graph, GraphEdge, GraphNode
from reprbasis.interfaces.metric import Metric
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.scorer import ContrastBatch, ScoreTable
from reprbasis.interfaces.step import Step, StepContext
from reprbasis.kits.cards import cards
from reprbasis.kits.circuits import places_of
from reprbasis.kits.nodes import REST, Places
from reprbasis.runtime.activations import Activations
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.batches import Batches, batches
from reprbasis.sites import Site

from . import words
from .config import DrawConfig
from .measured import Activity, Node, activity, from_inputs, worth

KINDS, FEW, TOLD = 4, 5, 6
"""Most answers that prompts are told apart by; least prompts of each; latents that the note speaks of."""
ABLATIONS = {"mean": "all others at their mean over corrupted prompts", "zero": "all others at 0",
             "corrupt": "all others at their value in the corrupted prompt"}
Share: TypeAlias = Mapping[tuple[str, str], tuple[float, float]]
"""(source, target) -> share of what the target receives, and the raw edge."""


class DrawStep(Step[DrawConfig]):
    """Make a graph of a circuit."""

    def run(self, context: StepContext, **inputs: Artifact) -> Graph:
        """Takes `basis`, `circuit`, and optionally `edges` (from `connect`) and `activations` (to take contexts from)."""
        basis, circuit = inputs["basis"], inputs["circuit"]
        assert isinstance(basis, Basis)
        assert isinstance(circuit, Circuit)
        edges, text = inputs.get("edges"), inputs.get("activations")
        assert edges is None or isinstance(edges, ScoreTable)
        assert text is None or isinstance(text, Activations)
        if not circuit.nodes():
            raise DataError("the circuit has no nodes, so there is nothing to draw", do="find one at a lower cost")
        config = self.config
        found = batches(context.model, context.registry.build(config.task), split=config.split, n=config.prompts,
                        batch=config.batch, seed=context.seed, keep=config.keep)
        metric = context.registry.build(config.metric)
        what = config.task.name.rpartition("/")[2]
        return circuit_graph(context.model, basis, circuit, found, metric, edges=edges, activations=text, title=what,
                             contexts=config.contexts, words_shown=config.words, tokens=config.tokens, random=config.random,
                             seed=context.seed)


def circuit_graph(model: ModelAdapter[Any], basis: Basis, circuit: Circuit, found: Batches, metric: Metric[Any], *,
                  edges: ScoreTable | None = None, activations: Activations | None = None, title: str = "circuit",
                  contexts: int = 6, words_shown: int = 8, tokens: int = 20_000, random: int = 5, seed: int = 0) -> Graph:
    """The graph of a circuit.

    Weights of nodes: share of F(model) - F(empty) that the circuit loses without the node (all others stay). Weights of edges:
    share of what the target receives from the whole site before, in or out of the circuit; to a node that no node of the circuit
    feeds, from the tokens: share of what corrupting the prompt changes in it that corrupting this token alone changes; to the
    output: the weight of the node.

    Args:
        model, basis, circuit, metric: as found.
        found: prompts that everything is measured on (others than the circuit was found on).
        edges: edges between its nodes (step `connect`).
        activations: harvested text for the contexts of latents.
        title: what the circuit does.
        contexts, words_shown, tokens: of the cards, see `kits.cards.cards`.
        random, seed: random circuits to compare with.
    """
    return _Drawing(model, basis.at(circuit.setup.sites), circuit, found, metric, edges, seed).graph(
        title, activations, contexts, words_shown, tokens, random)


@dataclass
class _Drawing:
    model: ModelAdapter[Any]
    basis: Basis
    circuit: Circuit
    found: Batches
    metric: Metric[Any]
    edges: ScoreTable | None
    seed: int

    def __post_init__(self) -> None:
        self.places: Places = places_of(self.circuit.setup, self.found)
        self.nodes: list[Node] = [(site, max(row, 0), k) for site, row, k in self.circuit.nodes() if row < len(self.places)]
        self.width = self.basis.d_dict
        self.columns = _columns(self.model, self.places, self.found)
        self.ids = {node: self._id(node) for node in self.nodes}
        self.shares = self._shares()
        self.first = [n for n in self.nodes if not any(b == self.ids[n] for _, b in self.shares)]
        self.last = [n for n in self.nodes if not any(a == self.ids[n] for a, _ in self.shares)]

    def _id(self, node: Node) -> str:
        site, row, latent = node
        return f"{site}/{'error' if latent == self.width else latent}@{self.places.names[row]}"

    def place(self, row: int) -> str:
        """What a place is called."""
        column = self.columns[row]
        return column.name or words.quoted(column.text)

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _shares(self) -> dict[tuple[str, str], tuple[float, float]]:
        """Edges among the nodes, as shares of what the target receives from all of the site before."""
        if self.edges is None:
            return {}
        by_place = {(s, r, k): (s, r, k) for s, r, k in self.nodes}
        raw: dict[Node, dict[Node, float]] = defaultdict(dict)
        received: dict[Node, float] = {}
        for (a, b), table in self.edges.edges.items():
            table = table.coalesce()
            for where, value in zip(table.indices().T.tolist(), table.values().tolist(), strict=True):
                (ra, ka), (rb, kb) = ((0, where[0]), (0, where[1])) if len(where) == 2 else (where[:2], where[2:])
                if (a, ra, ka) in by_place and (b, rb, kb) in by_place:
                    raw[b, rb, kb][a, ra, ka] = value
            for row, latent, amount in self.edges.details.get("received", {}).get(f"{a}>{b}", []):
                received[b, int(row), int(latent)] = amount
        out = {}
        for target, sources in raw.items():
            total = max(abs(received.get(target, 0.0)), sum(map(abs, sources.values())))
            sign = -1.0 if received.get(target, 0.0) < 0 else 1.0
            for source, value in sources.items():
                if total > 0:
                    out[self.ids[source], self.ids[target]] = sign * value / total, value
        return out

    def sides(self, seen: Activity) -> list[tuple[str, Tensor, Tensor]]:
        """Kinds of prompt to tell apart: name, which prompts [N], and activation of each node [U, N] on that kind."""
        answers = [words.quoted(self.word(item.targets.answer, b)) for item in self.found for b in range(item.clean.shape[0])]
        pairs = [self.found.pairs[int(i)] for item in self.found for i in item.clean.sequences[:, -1]] if self.found.pairs else []
        cases = [words.quoted(str(pair.meta.get("case", ""))) for pair in pairs]
        for what, kinds in (("answer", answers), ("case", cases)):
            common = sorted(a for a, n in Counter(kinds).items() if n >= FEW)
            if 2 <= len(common) <= KINDS:
                return [(f"the {what} is {a}", torch.tensor([x == a for x in kinds]), seen.clean) for a in common]
        every = torch.ones(len(answers), dtype=torch.bool)
        return [("the prompt is clean", every, seen.clean), ("the prompt is corrupted", every, seen.corrupt)]

    def word(self, targets: Tensor | None, row: int) -> str:
        """The first of the answers of a prompt."""
        return "" if targets is None else str(self.model.tokenizer.decode([int(targets[row, 0])]))

    def example(self) -> tuple[str, str, str, list[dict[str, Any]]]:
        """Prompt, answer, other answer, and both answers with their probability, of the first prompt."""
        item = self.found[0]
        pair = self.found.pairs[int(item.clean.sequences[0, -1])] if self.found.pairs else None
        logits = self.model.forward(item.clean.take(torch.tensor([0])), logits="last").logits
        assert logits is not None
        p = logits[0, -1].float().softmax(-1)
        outputs = [{"token": self.word(t, 0), "id": int(t[0, 0]), "p": float(p[int(t[0, 0])])}
                   for t in (item.targets.answer, item.targets.wrong) if t is not None]
        text = pair.clean.text if pair is not None else None
        answer, wrong = self.word(item.targets.answer, 0), self.word(item.targets.wrong, 0)
        return str(text or self.model.tokenizer.decode(item.clean.ids[0].tolist())), answer, wrong, outputs

    # -- putting together ----------------------------------------------------------------------------------------------

    def graph(self, title: str, text: Activations | None, contexts: int, shown: int, tokens: int, random: int) -> Graph:
        """See `circuit_graph`."""
        nodes, latents = self.nodes, [n for n in self.nodes if n[2] != self.width]
        groups = self._groups()
        at_place = {row: [n for n in nodes if n[1] == row] for row in dict.fromkeys(sorted(n[1] for n in nodes))}
        errors = [n for n in nodes if n[2] == self.width]
        same = {key: [n for n in latents if (n[1], n[2]) == key] for key in dict.fromkeys((n[1], n[2]) for n in latents)}
        sets = [*([n] for n in nodes), *groups.values(), *at_place.values(), *same.values(), errors]
        found = worth(self.model, self.basis, self.circuit, self.found, self.metric, sets, random=random, seed=self.seed)
        lost = iter(found.without)
        node_lost, group_lost, place_lost, latent_lost = (dict(zip(keys, lost, strict=False)) for keys in (
            nodes, groups, at_place, same))
        error_lost = next(lost)
        seen = activity(self.model, self.basis, self.circuit, self.found, self.places, nodes)
        look: dict[int, list[Site]] = defaultdict(list)
        for site, _, k in latents:
            look[k] += [] if site in look[k] else [site]
        usable = None if text is None or any(s not in text.sites for s in self.basis.sites) else text
        card = cards(self.model, self.basis, usable, look, contexts=contexts, words=shown, tokens=tokens)
        sides, prompt = self.sides(seen), self.example()
        levels = ["tokens", *map(str, self.circuit.setup.sites), "output"]
        drawn = [self._node(n, levels, node_lost[n], card.get(n[2]), seen, sides, index) for index, n in enumerate(nodes)]
        group_of = {n: key for key, members in groups.items() for n in members}
        drawn = [replace(d, group=group_of.get(n, "")) for d, n in zip(drawn, nodes, strict=True)]
        ends, links = self._ends(levels, node_lost, prompt)
        inner = [GraphEdge(a, b, share, "", {"as measured": raw}) for (a, b), (share, raw) in self.shares.items()]
        kept = [d for d in ends if d.kind == "output" or any(d.id in (e.source, e.target) for e in links)]
        stats = self.circuit.stats()
        rest = ABLATIONS[self.circuit.setup.ablation]
        notes = [words.opening(title, prompt[0], prompt[1], prompt[2], found, len(nodes), stats["errors"], rest),
                 words.where([(self.place(row), len(some), [str(s) for s in self._sites(some)], place_lost[row])
                              for row, some in at_place.items()], len(self.columns))]
        if steps := self._moves():
            notes.append(words.moves(steps))
        for row, k in sorted(same, key=lambda key: -latent_lost[key])[:TOLD]:
            clearest = max((_told(sides, nodes.index(n)) for n in same[row, k]), key=_gap)
            notes.append(words.latent(k, self.place(row), [str(s) for s in self._sites(same[row, k])], clearest, card[k],
                                      latent_lost[row, k], self._raises(k)))
        if errors:
            notes.append(words.errors(Counter(self.place(n[1]) for n in errors), error_lost, len(errors)))
        if self.shares:
            inside: dict[str, float] = defaultdict(float)
            for (_, b), (share, _) in self.shares.items():
                inside[b] += share
            assert self.edges is not None
            notes.append(words.edges(str(self.edges.details.get("kind", "")), sum(inside.values()) / len(inside), len(inside)))
        return Graph(
            f"{title}: a circuit of {len(nodes)} nodes", levels, self.columns, [*kept, *drawn], [*inner, *links],
            {key: self._called(members, card) for key, members in groups.items()}, {str(k): c for k, c in card.items()}, notes,
            "share of the effect lost without it", "share of what the target receives",
            {"prompt": prompt[0], "outputs": prompt[3], "groups": group_lost, "edges": "shares",
             "setup": self.circuit.setup.facts(), "n": found.model.n,
             "faithfulness": [found.share.value, found.share.low, found.share.high],
             "random": found.random.value, "without": {self.place(r): v for r, v in place_lost.items()}})

    def _groups(self) -> dict[str, list[Node]]:
        """Supernodes: at each place the nodes of one latent, all errors, and latents that stand there once."""
        out: dict[str, list[Node]] = {}
        for row in dict.fromkeys(sorted(n[1] for n in self.nodes)):
            here = [n for n in self.nodes if n[1] == row]
            count = Counter(k for _, _, k in here)
            for node in here:
                kind = "errors" if node[2] == self.width else f"latent {node[2]}" if count[node[2]] > 1 else "single latents"
                out.setdefault(f"{kind} @ {self.places.names[row]}", []).append(node)
        return {key: members for key, members in out.items() if len(members) > 1}

    def _called(self, members: Sequence[Node], card: Mapping[int, FeatureCard]) -> str:
        """A supernode in words."""
        at, kinds = self.place(members[0][1]), {k for _, _, k in members}
        if kinds == {self.width}:
            return f"errors · {at}"
        return f"{_label(card[members[0][2]], False)} · {at}" if len(kinds) == 1 else f"{len(kinds)} latents · {at}"

    def _sites(self, members: Sequence[Node]) -> list[Site]:
        return [s for s in self.circuit.setup.sites if any(n[0] == s for n in members)]

    def _node(self, node: Node, levels: Sequence[str], lost: float, card: FeatureCard | None, seen: Activity,
              sides: Sequence[tuple[str, Tensor, Tensor]], index: int) -> GraphNode:
        site, row, latent = node
        error = latent == self.width
        facts: dict[str, float | str] = {"activation": _mean(seen.clean[index])}
        for name, pick, values in sides:
            here = values[index, pick]
            facts[f"{'norm' if error else 'activation'} where {name}"] = _mean(here)
            if not error:
                facts[f"on where {name}"] = words.percent(_mean((here > 0).double()))
        given = sum(share for (_, b), (share, _) in self.shares.items() if b == self.ids[node])
        if given:
            facts["received from nodes of the circuit"] = words.percent(given)
        return GraphNode(self.ids[node], "error" if error else "latent", levels.index(str(site)), row,
                         "error" if error else _label(card, site == self.circuit.setup.sites[-1]), lost, "", str(site),
                         None if error else latent, "" if error else str(latent), facts)

    def _ends(self, levels: Sequence[str], lost: Mapping[Node, float],
              prompt: tuple[str, str, str, Any]) -> tuple[list[GraphNode], list[GraphEdge]]:
        """Tokens below, the answer above, and the edges to and from them."""
        given = from_inputs(self.model, self.basis, self.found, self.places, self.first, range(len(self.places)))
        tokens = [GraphNode(f"token@{self.places.names[r]}", "input", 0, r, words.quoted(c.text))
                  for r, c in enumerate(self.columns)]
        output = GraphNode("output", "output", len(levels) - 1, len(self.columns) - 1 if self.places.kind == "token" else
                           max((n[1] for n in self.last), default=0), f"{words.quoted(prompt[1])} over {words.quoted(prompt[2])}")
        links = [GraphEdge(tokens[row].id, self.ids[node], share) for (row, node), share in given.items() if abs(share) >= 0.01]
        return [*tokens, output], [*links, *(GraphEdge(self.ids[n], "output", lost[n]) for n in self.last)]

    def _moves(self) -> list[tuple[str, str, str, str, float]]:
        """Between which sites value crosses from one place to another."""
        where = {self.ids[n]: n for n in self.nodes}
        amount: dict[tuple[int, int], dict[tuple[Site, Site], float]] = defaultdict(dict)
        for (a, b), (share, _) in self.shares.items():
            (sa, ra, _), (sb, rb, _) = where[a], where[b]
            if ra != rb:
                amount[ra, rb][sa, sb] = amount[ra, rb].get((sa, sb), 0.0) + abs(share)
        out = []
        for (ra, rb), steps in sorted(amount.items(), key=lambda item: -sum(item[1].values()))[:3]:
            sa, sb = max(steps, key=lambda pair: steps[pair])
            out.append((self.place(ra), self.place(rb), str(sa), str(sb), steps[sa, sb] / sum(steps.values())))
        return out

    def _raises(self, latent: int) -> str:
        """Which of two answers a latent's direction raises over the other, if the task has two."""
        ids = dict.fromkeys(int(x) for item in self.found if item.targets.answer is not None for x in item.targets.answer[:, 0])
        if len(ids) != 2:
            return ""
        way_out = self.model.unembedding()
        a, b = ids
        direction = self.basis.directions(self.basis.sites[-1])[latent].float()
        margin = float(direction @ ((way_out.weight[a] - way_out.weight[b]).float() * way_out.gain.float()))
        high, low = (a, b) if margin > 0 else (b, a)
        up, down = (words.quoted(self.model.tokenizer.decode([i])) for i in (high, low))
        return f"raises {up} over {down}"


def _columns(model: ModelAdapter[Any], places: Places, found: Sequence[ContrastBatch]) -> list[Column]:
    """One column for each place, with the tokens of the first prompt there."""
    item = found[0]
    index, out = places.index(item), []
    for row, name in enumerate(places.names):
        here = (index[0] == row).nonzero()[:, 0]
        at = item.clean.positions[0, here][:, None]
        roles = " / ".join(r for r, where in item.roles.items() if bool((at == where[0][None, :]).any()))
        called = {"shared": "all tokens", "role": "other tokens" if name == REST else name, "token": roles}[places.kind]
        clean, corrupt = ("" if side is None or places.kind == "shared" else model.tokenizer.decode(side.ids[0, here].tolist())
                          for side in (item.clean, item.corrupt))
        out.append(Column(called, clean if len(clean) < 24 else clean[:22] + "…", corrupt if corrupt != clean else ""))
    return out


def _label(card: FeatureCard | None, last: bool) -> str:
    """A few words from data: what it is active on, or at the last site what it promotes."""
    seen, said = words.peaks(card, 3), words.promotes(card, 3)
    return f"→ {', '.join(said)}" if (last or not seen) and said else ", ".join(seen)


def _mean(values: Tensor) -> float:
    kept = values[~values.isnan()]
    return float(kept.mean()) if len(kept) else 0.0


def _told(sides: Sequence[tuple[str, Tensor, Tensor]], index: int) -> list[words.Side]:
    """How a node behaves on each kind of prompt."""
    return [words.Side(name, _mean((values[index, pick] > 0).double()), _mean(values[index, pick]))
            for name, pick, values in sides]


def _gap(told: Sequence[words.Side]) -> float:
    """How far apart the kinds of prompt are."""
    return max(s.rate for s in told) - min(s.rate for s in told)
