"""Stages 3 and 4: steps fit together, and fit the model."""

import pytest

from reprbasis.errors import ConfigError
from reprbasis.pipeline import facts, wiring
from reprbasis.pipeline.spec import parse

ACTS = {"do": "harvest", "corpus": "lines"}
BASIS = {"do": "learn", "from": {"activations": "acts"}, "learner": "sparse"}
EVAL = {"do": "evaluate", "from": {"basis": "basis"}, "evaluators": ["table"]}


def pipeline(toy, model="toy", **steps):
    return parse({"reprbasis": 1, "name": "x", **({"model": model} if model else {}), "steps": steps}, registry=toy)


def wrong(toy, model="toy", **steps):
    with pytest.raises(ConfigError) as caught:
        wiring.check(pipeline(toy, model, **steps), toy)
    assert caught.value.stage == "wiring"
    return [(p.what, p.do) for p in caught.value.problems]


def test_order_follows_the_inputs(toy):
    assert wiring.check(pipeline(toy, eval=EVAL, basis=BASIS, acts=ACTS), toy) == ["acts", "basis", "eval"]


def test_ancestors(toy):
    spec = pipeline(toy, acts=ACTS, basis=BASIS, eval=EVAL)
    assert wiring.ancestors(spec, "eval") == {"acts", "basis"}
    assert wiring.ancestors(spec, "acts") == set()


def test_unknown_step_and_port(toy):
    found = wrong(toy, acts=ACTS, basis=BASIS | {"from": {"activations": "act", "rows": "acts"}})
    assert found == [("steps.basis.from.activations: there is no step 'act'", "did you mean 'acts'?"),
                     ("steps.basis.from.rows: the step 'learn' has no such input", "known: activations")]


def test_missing_input_names_the_step_that_could_give_it(toy):
    found = wrong(toy, acts=ACTS, basis={"do": "learn", "learner": "sparse"})
    assert found == [("steps.basis: the input 'activations' (activations) is missing",
                      "write from: {activations: acts}")]


def test_an_optional_input_may_be_missing_but_not_of_another_type(toy):
    found = wrong(toy, acts=ACTS, basis=BASIS, eval=EVAL | {"from": {"basis": "basis", "activations": "basis"}})
    assert found == [("steps.eval.from.activations: needs activations, but 'basis' makes basis", "take acts")]


def test_a_cycle_is_named(toy):
    found = wrong(toy, basis=BASIS | {"from": {"activations": "eval"}}, eval=EVAL)
    assert any("basis <- eval <- basis" in what for what, _ in found)


def test_a_step_that_waits_for_itself(toy):
    found = wrong(toy, basis=BASIS | {"from": {"activations": "basis"}})
    assert any("basis <- basis" in what for what, _ in found)


def test_capability_of_the_model(toy):
    found = wrong(toy, acts=ACTS | {"corpus": "talk"})
    assert len(found) == 1
    assert "the corpus 'talk' needs 'generate'" in found[0][0]
    assert found[0][1] == "nothing installed offers 'generate'"


def test_capability_of_a_component_upstream(toy):
    found = wrong(toy, acts=ACTS, basis=BASIS | {"learner": "opaque"}, eval=EVAL)
    assert len(found) == 1
    assert "the evaluator 'table' needs 'affine-decoder'" in found[0][0]
    assert "'toys/opaque'" in found[0][0]
    assert found[0][1] == "use one that does: learner sparse"


def test_capability_of_a_port(toy):
    draw = {"do": "draw", "from": {"basis": "basis"}}
    assert wiring.check(pipeline(toy, acts=ACTS, basis=BASIS, draw=draw), toy) == ["acts", "basis", "draw"]
    found = wrong(toy, acts=ACTS, basis=BASIS | {"learner": "opaque"}, draw=draw)
    assert "steps.draw.from.basis: needs 'affine-decoder'" in found[0][0]


def test_a_model_is_needed(toy):
    found = wrong(toy, model=None, acts=ACTS)
    assert "the step 'harvest' needs a model" in found[0][0]


def test_all_problems_come_together(toy):
    found = wrong(toy, acts=ACTS | {"corpus": "talk"}, basis=BASIS | {"from": {}}, eval=EVAL | {"from": {"basis": "b"}})
    assert len(found) == 3


# ---- stage 4


def unfit(toy, model="toy", **steps):
    with pytest.raises(ConfigError) as caught:
        facts.check(pipeline(toy, model, **steps), toy)
    assert caught.value.stage == "facts"
    return [p.what for p in caught.value.problems]


def test_facts_describe_the_model(toy):
    info = facts.check(pipeline(toy, {"use": "toy", "layers": 7}, acts=ACTS | {"sites": ["resid.6", "embed"]}), toy)
    assert info.n_layers == 7
    assert facts.check(pipeline(toy, None, acts=ACTS), toy) is None


def test_sites_are_resolved_against_the_model(toy):
    assert unfit(toy, acts=ACTS | {"sites": ["resid.3", "atn_out.*", "embed"]}) == [
        "steps.acts.sites: 'resid.3': the model has 3 layers of 'resid' (0 to 2)",
        "steps.acts.sites: unknown site 'atn_out.*'"]


def test_optional_sites_are_resolved_too(toy):
    good = pipeline(toy, acts=ACTS, basis=BASIS, eval=EVAL)
    assert facts.check(good, toy) is not None
    assert unfit(toy, acts=ACTS, basis=BASIS, eval=EVAL | {"sites": "resid.9"}) == [
        "steps.eval.sites: 'resid.9': the model has 3 layers of 'resid' (0 to 2)"]


def test_a_step_may_check_for_itself(toy):
    assert unfit(toy, acts=ACTS | {"tokens": 10**7}) == ["steps.acts: too many tokens"]
