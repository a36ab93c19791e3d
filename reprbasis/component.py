"""What a plugin declares: a `Component`. This module knows the kinds of component, never an implementation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel, ConfigDict

PLUGIN_API: Final = 1
"""Version of the plugin interface. It is raised when a plugin written for the old one could break."""


class ComponentConfig(BaseModel):
    """Base of every component's configuration: frozen, unknown keys refused; every field needs a description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


@dataclass(frozen=True)
class Kind:
    """A kind of component: the question it answers, its interface, and the conformance suite that proves it."""

    name: str
    question: str
    interface: str
    contract: str


def _kind(name: str, question: str, interface: str, contract: str) -> tuple[str, Kind]:
    return name, Kind(name, question, f"reprbasis.interfaces.{interface}", f"reprbasis.testing:{contract}")


KINDS: Final[Mapping[str, Kind]] = dict([
    _kind("model", "run this network, capture and edit its sites, show its weights", "model:ModelAdapter", "ModelContract"),
    _kind("corpus", "text, chats or images to harvest activations from", "corpus:Corpus", "CorpusContract"),
    _kind("task", "aligned clean/corrupt prompt pairs with answers", "task:Task", "TaskContract"),
    _kind("learner", "learn a dictionary from activations", "learner:DictionaryLearner", "LearnerContract"),
    _kind("scorer", "how much does each feature or component matter", "scorer:AttributionScorer", "ScorerContract"),
    _kind("finder", "which small set of features carries the task", "finder:CircuitFinder", "FinderContract"),
    _kind("editor", "change the model's behaviour through features", "editor:Editor", "EditorContract"),
    _kind("lens", "read a site in vocabulary coordinates", "lens:Lens", "LensContract"),
    _kind("aligner", "map one model's space onto another's", "aligner:Aligner", "AlignerContract"),
    _kind("metric", "one number per example", "metric:Metric", "MetricContract"),
    _kind("evaluator", "a table of measurements with intervals", "evaluator:Evaluator", "EvaluatorContract"),
    _kind("judge", "say what passages have in common, and of others whether they show it", "judge:Judge", "JudgeContract"),
    _kind("codec", "import and export foreign dictionary formats", "codec:Codec", "CodecContract"),
    _kind("step", "one node of a pipeline", "step:Step", "StepContract"),
    _kind("reporter", "show a run", "reporter:Reporter", "ReporterContract"),
])

CAPABILITIES: Final[Mapping[str, str]] = {
    "gradients": "model: forward(grad=True) gives activations that autograd can differentiate",
    "generate": "model: generate() continues prompts",
    "chat": "model: its tokenizer has a chat template",
    "vision": "model: accepts images and flags image tokens",
    "weights": "model: attention(), mlp() and unembedding() show its weights",
    "affine-decoder": "learner: decode(z) = z @ directions() + bias",
    "nonnegative-latents": "learner: encode(x) >= 0",
    "binary-latents": "learner: encode(x) is 0 or 1",
    "sparse-latents": "learner: most of encode(x) is exactly 0",
    "divisible-rows": "learner: the rows of a training step may be divided over processes (see kits.affine.Weighted.mean)",
    "divisible-latents": "learner: its latents may be divided over processes too (see kits.sparse.Codes)",
    "bfloat16-products": "learner: its large products may be taken in bfloat16 (see kits.sparse.Codes)",
    "parallel": "step: all processes that torchrun started work on it together; otherwise one does, and the others wait",
    "contrast": "task: pairs have a clean and a corrupted side of equal length",
    "needs-model": "corpus: examples() runs the model (for example to write its own answers)",
    "invertible": "aligner: the map has an inverse",
}
"""The closed vocabulary of capabilities, checked when a pipeline is wired and proven by the conformance suites."""

ARTIFACTS: Final[Mapping[str, str]] = {
    "activations": "reprbasis.runtime.activations:Activations",
    "basis": "reprbasis.runtime.basis:Basis",
    "findings": "reprbasis.interfaces.evaluator:Findings",
    "scores": "reprbasis.interfaces.scorer:ScoreTable",
    "circuit": "reprbasis.interfaces.finder:Circuit",
    "edit-plan": "reprbasis.interfaces.editor:EditPlan",
    "alignment": "reprbasis.interfaces.aligner:Alignment",
    "lens-fit": "reprbasis.interfaces.lens:LensFit",
    "graph": "reprbasis.interfaces.graph:Graph",
}
"""Types of artifact that steps exchange, and the class that loads each."""

_NAME = re.compile(r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")


@dataclass(frozen=True)
class Port:
    """An input of a step: its name in `from:`, the artifact type it takes, and what that artifact must be able to do."""

    name: str
    type: str
    optional: bool = False
    requires: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Component:
    """One thing a plugin offers. Declaring it imports no implementation: `factory` is a string.

    Args:
        kind: one of `KINDS`.
        name: short lower-case name used in configs (`jumprelu`).
        config: the pydantic model of its options, a subclass of `ComponentConfig`.
        factory: `"package.module:Class"`; the class is called with the config as its only argument.
        summary: one line for listings.
        provides: capabilities it has (see `CAPABILITIES`).
        requires: per kind, the capabilities it needs of the component it is used with, for example `{"model": {"generate"}}`.
        inputs: steps only: the artifacts it takes.
        output: steps only: the artifact type it produces.
        needs_model: steps only: whether the pipeline's model must be loaded for it.
        api: the `PLUGIN_API` it was written for.
    """

    kind: str
    name: str
    config: type[ComponentConfig]
    factory: str
    summary: str
    provides: frozenset[str] | set[str] = frozenset()
    requires: Mapping[str, frozenset[str] | set[str]] = field(default_factory=dict)
    inputs: tuple[Port, ...] = ()
    output: str | None = None
    needs_model: bool = False
    api: int = PLUGIN_API

    def faults(self) -> list[str]:
        """What is wrong with this declaration; empty when it can be registered."""
        out: list[str] = []
        if self.api != PLUGIN_API:
            out.append(f"is written for plugin API {self.api}, this core has {PLUGIN_API}: "
                       + ("upgrade the plugin" if self.api < PLUGIN_API else "upgrade reprbasis"))
            return out
        if self.kind not in KINDS:
            out.append(f"has kind '{self.kind}', which is none of {', '.join(KINDS)}")
        if not _NAME.match(self.name):
            out.append(f"has the name '{self.name}': use lower-case words joined by '-'")
        if not (isinstance(self.config, type) and issubclass(self.config, ComponentConfig)):
            out.append("has a config that is not a subclass of reprbasis.ComponentConfig")
        if self.factory.count(":") != 1:
            out.append(f"has the factory '{self.factory}': write 'package.module:Class'")
        unknown = (set(self.provides) | {c for need in self.requires.values() for c in need}
                   | {c for port in self.inputs for c in port.requires}) - set(CAPABILITIES)
        if unknown:
            out.append(f"names unknown capabilities {sorted(unknown)}: choose from {', '.join(CAPABILITIES)}")
        if self.kind == "step" and self.output not in ARTIFACTS:
            out.append(f"is a step with output '{self.output}': choose from {', '.join(ARTIFACTS)}")
        wrong = [port.name for port in self.inputs if port.type not in ARTIFACTS]
        if wrong:
            out.append(f"has input ports of unknown artifact type: {wrong}; choose from {', '.join(ARTIFACTS)}")
        return out
