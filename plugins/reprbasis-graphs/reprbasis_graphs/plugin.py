"""Declares the step `draw` and the reporter `graphs`; imports no torch."""

from reprbasis import Component, Port, hookimpl

from .config import DrawConfig, GraphsConfig


@hookimpl
def reprbasis_register(register):
    """Offer the step that makes a graph of a circuit, and the reporter that shows any graph."""
    register(Component(
        kind="step", name="draw", config=DrawConfig, factory="reprbasis_graphs.circuit:DrawStep",
        summary="A circuit as a graph: nodes, edges, what each latent responds to, and what it does in words",
        inputs=(Port("basis", "basis", requires=frozenset({"affine-decoder"})), Port("circuit", "circuit"),
                Port("edges", "scores", optional=True), Port("activations", "activations", optional=True)),
        output="graph", needs_model=True, requires={"model": {"weights"}}))
    register(Component(
        kind="reporter", name="graphs", config=GraphsConfig, factory="reprbasis_graphs.reporter:GraphsReporter",
        summary="Every graph of a run as an interactive page, as SVG and as JSON for circuit-tracer and Neuronpedia"))
