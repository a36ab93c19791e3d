"""Steps: from a basis and a task to scores, and from a circuit to its edges."""

from dataclasses import replace
from typing import Any

from reprbasis.interfaces.artifact import Artifact
from reprbasis.interfaces.finder import Circuit
from reprbasis.interfaces.scorer import ScoreTable
from reprbasis.interfaces.step import Step, StepContext
from reprbasis.kits.edges import edges
from reprbasis.kits.nodes import Places, baseline_of
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.batches import Batches, batches

from .config import AttributeConfig, ConnectConfig, PromptsConfig


def prompts(context: StepContext, config: PromptsConfig) -> tuple[Batches, dict[str, Any]]:
    """The prompts of a step, and what to say of them."""
    found = batches(context.model, context.registry.build(config.task), split=config.split, n=config.prompts, batch=config.batch,
                    seed=context.seed, keep=config.keep)
    return found, {"task": config.task.dump(), "split": config.split, "seed": context.seed, "keep": config.keep,
                   "seen": found.seen, "kept": found.kept}


class AttributeStep(Step[AttributeConfig]):
    """Score the nodes of a basis on a task, with any scorer."""

    def run(self, context: StepContext, **inputs: Artifact) -> ScoreTable:
        """Takes `basis`; gives scores, whose details say which prompts they rest on."""
        basis, build = inputs["basis"], context.registry.build
        assert isinstance(basis, Basis)
        found, about = prompts(context, self.config)
        scorer, metric = build(self.config.scorer), build(self.config.metric)
        table: ScoreTable = scorer.score(context.model, basis.at(self.config.sites), found, metric)
        return replace(table, details={**table.details, **about})


class ConnectStep(Step[ConnectConfig]):
    """Edges between the nodes of a circuit, under the circuit's own ablation and places."""

    def run(self, context: StepContext, **inputs: Artifact) -> ScoreTable:
        """Takes `basis` and `circuit`; gives scores with edges, and with the scores of nodes if the circuit has them."""
        basis, circuit = inputs["basis"], inputs["circuit"]
        assert isinstance(basis, Basis)
        assert isinstance(circuit, Circuit)
        setup = circuit.setup
        found, about = prompts(context, self.config)
        rows = max((len(m) for m in circuit.masks.values() if m.ndim == 2), default=1)
        names = {"shared": Places().names, "role": setup.roles, "token": tuple(map(str, range(rows)))}[setup.index]
        part = basis.at(setup.sites)
        baseline = baseline_of(setup.ablation, context.model, part, found, places="role" if setup.index == "role" else "token")
        metric = context.registry.build(self.config.metric)
        table = edges(context.model, part, found, metric, circuit.masks, kind=self.config.edges, baseline=baseline,
                      steps=self.config.steps, places=Places(setup.index, names), rows=self.config.rows, protect=setup.protect)
        nodes = {} if circuit.scores is None else circuit.scores.nodes
        return ScoreTable(nodes, table.edges, {**table.details, "setup": setup.facts(), **about})
