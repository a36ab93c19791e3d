"""The steps: find a circuit, judge one on held-out prompts, draw a whole frontier."""

from typing import Any, Literal

from reprbasis.interfaces.artifact import Artifact
from reprbasis.interfaces.evaluator import Figure, Findings, Measurement
from reprbasis.interfaces.finder import Circuit
from reprbasis.interfaces.scorer import ScoreTable
from reprbasis.interfaces.step import Step, StepContext
from reprbasis.kits.circuits import fill_of
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.batches import Batches, batches

from .config import FaithfulnessConfig, FindConfig, FrontierConfig, PromptsConfig
from .edges import edge_faithfulness
from .evaluation import Judge, random_like, row
from .frontier import RANDOM, Frontier


def prompts(context: StepContext, config: PromptsConfig, n: int, split: Literal["train", "test"],
            seed: int | None = None) -> Batches:
    """Prompts of the step's task."""
    return batches(context.model, context.registry.build(config.task), split=split, n=n, batch=config.batch,
                   seed=context.seed if seed is None else seed, keep=config.keep)


class FindStep(Step[FindConfig]):
    """Find a circuit."""

    def run(self, context: StepContext, **inputs: Artifact) -> Circuit:
        """Takes `basis` and, for finders that need them, `scores`; gives a circuit."""
        basis, scores = inputs["basis"], inputs.get("scores")
        assert isinstance(basis, Basis)
        assert scores is None or isinstance(scores, ScoreTable)
        found = prompts(context, self.config, self.config.prompts, "train")
        finder, metric = context.registry.build(self.config.finder), context.registry.build(self.config.metric)
        circuit: Circuit = finder.find(context.model, basis, found, metric, scores=scores)
        about = {"task": self.config.task.dump(), "metric": self.config.metric.dump(), "options": self.config.finder.dump(),
                 "keep_rate": found.keep_rate()}
        return Circuit(circuit.masks, circuit.scores, {**circuit.details, **about}, circuit.fill, circuit.error_fill)


class FaithfulnessStep(Step[FaithfulnessConfig]):
    """Judge a circuit on held-out prompts."""

    def run(self, context: StepContext, **inputs: Artifact) -> Findings:
        """Takes `basis` and `circuit`; gives findings."""
        basis, circuit = inputs["basis"], inputs["circuit"]
        assert isinstance(basis, Basis)
        assert isinstance(circuit, Circuit)
        metric = context.registry.build(self.config.metric)
        test = prompts(context, self.config, self.config.held_out, "test")
        judge = Judge(context.model, basis, circuit.setup, test, metric, fill=fill_of(circuit), resamples=self.config.resamples,
                      seed=context.seed)
        rows = [*judge.ends_measured(), *judge.circuits([circuit], "circuit")[0], *judge.subsets(circuit, "circuit",
                                                                                                   draws=self.config.subsets)]
        if self.config.edges:
            train = prompts(context, self.config, self.config.prompts, "train")
            rows += edge_faithfulness(judge, circuit, train, self.config.edges, "circuit")[0]
        idle, table = judge.minimality(circuit, "circuit")
        drawn = [random_like(circuit, judge.candidates(), context.seed + i) for i in range(self.config.random)]
        value = judge.run(judge.runner.dense(drawn)).value.mean(0)
        rows += [*idle, row("F", judge.mean(value), RANDOM, "metric"), row("faithfulness", judge.share(value), RANDOM)]
        return Findings(rows, _nodes(table), [], _words(circuit, rows, judge.n))


class FrontierStep(Step[FrontierConfig]):
    """Faithfulness against size for several finders and scorers."""

    def run(self, context: StepContext, **inputs: Artifact) -> Findings:
        """Takes `basis`; gives findings."""
        basis = inputs["basis"]
        assert isinstance(basis, Basis)
        test = prompts(context, self.config, self.config.held_out, "test")
        with context.progress.task("frontier", unit="stages") as task:
            done: list[str] = []

            def tell(line: str) -> None:
                done.append(line)
                task.update(len(done), now=line)

            metric = context.registry.build(self.config.metric)
            made = Frontier(self.config, context.registry, context.model, basis, metric, test, context.seed, tell)
            for repetition in range(self.config.seeds):
                made.add(prompts(context, self.config, self.config.prompts, "train", context.seed + repetition), repetition)
            return made.findings()


def _nodes(table: list[tuple[str, float]], most: int = 40) -> list[Figure]:
    if not table:
        return []
    shown = table[:most]
    return [Figure("bar", "What each node of the circuit does", "F(circuit) - F(circuit without the node) on held-out prompts, "
                   f"largest first ({len(shown)} of {len(table)} nodes): site, position or role, latent.",
                   {"effect": [v for _, v in shown]}, [name for name, _ in shown], x_label="node", y_label="metric")]


def _words(circuit: Circuit, rows: list[Measurement], n: int) -> list[str]:
    get = {(m.name, m.condition): m for m in rows}
    stats, setup = circuit.stats(), circuit.setup
    raw = ", ".join(f"F({k}) {get['F', k].value:.3f}" for k in ("model", "basis", "circuit", "empty"))

    def told(name: str) -> str:
        m: Any = get.get((name, "circuit"))
        return "-" if m is None else f"{m.value:.2f}" + (f" [{m.low:.2f}, {m.high:.2f}]" if m.low is not None else "")

    return [f"{stats['nodes']} nodes ({stats['errors']} error nodes, {stats['latents']} distinct latents) at "
            f"{', '.join(map(str, setup.sites))}; ablation: {setup.ablation}, error: {setup.error}. {n} held-out prompts. {raw}.",
            f"Faithfulness {told('faithfulness')} of the unchanged model"
            + (f", {told('without_errors')} without the error nodes" if setup.error == "node" else "")
            + f"; completeness {told('completeness')} (0 is best); random nodes: "
            f"{get['faithfulness', RANDOM].value:.2f}."]
