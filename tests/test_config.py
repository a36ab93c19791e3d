"""Strict YAML, component selection, error reports, overrides, JSON schema."""

import json
import math

import pytest
from pydantic import TypeAdapter

from reprbasis import ComponentConfig, Sites, Use
from reprbasis.config.schema import pipeline_schema
from reprbasis.config.strict_yaml import parse_yaml, read_yaml
from reprbasis.errors import ConfigError, UnknownComponentError, UserError
from reprbasis.pipeline.spec import parse, read

PIPELINE = """\
reprbasis: 1
name: tiny
model: toy
steps:
  acts: {do: harvest, corpus: lines}
  basis:
    do: learn
    from: {activations: acts}
    learner:
      use: sparse
      width: 32
  eval: {do: evaluate, from: {basis: basis}, evaluators: [table]}
report: [quiet]
"""


# ---- YAML


@pytest.mark.parametrize(("text", "value"), [
    ("1e-3", 1e-3), ("1E6", 1e6), (".5", 0.5), ("-3", -3), ("010", 10), ("0x1f", 31), ("0o17", 15),
    ("true", True), ("False", False), ("~", None), ("null", None), ("-.inf", -math.inf),
    ("yes", "yes"), ("no", "no"), ("on", "on"), ("Off", "Off"), ("y", "y"), ("1_000", "1_000"),
    ("2024-01-01", "2024-01-01"),
    ("12:30", "12:30"), ("'1'", "1"), ('"true"', "true"), ("1.2.3", "1.2.3"),
])
def test_scalars_follow_yaml_1_2(text, value):
    read = parse_yaml(f"a: {text}").data["a"]
    assert read == value
    assert type(read) is type(value)


def test_nan():
    assert math.isnan(parse_yaml("a: .nan").data["a"])


def test_lines_of_every_key_path():
    lines = parse_yaml("a: 1\nb:\n  - x\n  - c: 2\n", "f.yaml").lines
    assert lines[("a",)] == "f.yaml:1"
    assert lines[("b", 1, "c")] == "f.yaml:4"


def test_anchors_and_aliases_are_copies():
    data = parse_yaml("a: &x {k: [1]}\nb: *x\n").data
    assert data["a"] == data["b"]
    assert data["a"] is not data["b"]


@pytest.mark.parametrize(("text", "told"), [
    ("a: 1\nb: 2\na: 3\n", "f.yaml:3: a: the key is written twice"),
    ("a: {b: 1, b: 2}\n", "f.yaml:1: a.b: the key is written twice"),
    ("a: !!python/object/apply:os.system [x]\n", "f.yaml:1: the tag !!python/object/apply:os.system is not allowed"),
    ("a: !mine 3\n", "the tag !mine is not allowed"),
    ("a: !!int '3'\n", "the tag !!int is not allowed"),
    ("a: [1, 2\n", "f.yaml:2: this is not YAML"),
    ("a: 1\n b: 2\n", "f.yaml:2: this is not YAML"),
    ("a: *nope\n", "this is not YAML: found undefined alias"),
    ("a: &x [*x]\n", "this anchor contains itself"),
    ("a: &x {k: 1}\nb: {<<: *x}\n", "merge keys"),
    ("? [1]\n: 2\n", "a key must be a plain word"),
])
def test_what_strict_yaml_refuses(text, told):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f.yaml")
    assert told in str(caught.value)
    assert caught.value.stage == "read"


def test_aliases_cannot_explode():
    text = "a: &a [x]\n" + "".join(f"k{i}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9))
    with pytest.raises(ConfigError, match="more than"):
        parse_yaml(text)


def test_a_file_that_is_not_there_gives_near_misses(tmp_path):
    (tmp_path / "quick.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="no such file") as caught:
        read_yaml(tmp_path / "quik.yaml")
    assert "quick.yaml" in caught.value.do


# ---- selections


def test_a_name_and_a_mapping_select_the_same(toy):
    assert toy.select("learner", "sparse") == toy.select("learner", {"use": "toys/sparse", "width": 16})


def test_a_selection_round_trips_through_json(toy):
    chosen = toy.select("step", {"use": "learn", "learner": {"use": "sparse", "width": 64, "schedule": {"rate": 0.5}}})
    dumped = json.loads(json.dumps(chosen.dump()))
    assert dumped["use"] == "toys/learn"
    assert dumped["learner"] == {"use": "toys/sparse", "width": 64, "schedule": {"rate": 0.5}}
    assert toy.select("step", dumped) == chosen
    assert hash(chosen) == hash(toy.select("step", dumped))
    assert chosen.config.learner.provides == {"affine-decoder"}


def test_nested_selections_are_found_at_any_depth(toy):
    chosen = toy.select("step", {"use": "evaluate", "evaluators": ["table", "table"]})
    assert [s.name for s in chosen.nested()] == ["toys/table", "toys/table"]


def test_a_selection_of_another_kind_is_refused(toy):
    with pytest.raises(ConfigError, match="a learner is needed"):
        toy.select("learner", toy.select("corpus", "lines"))
    with pytest.raises(ConfigError, match="does not select a learner"):
        toy.select("learner", 3)
    with pytest.raises(UnknownComponentError):
        toy.select("learner", "lines")


def test_every_problem_of_nested_configs_is_reported(toy):
    with pytest.raises(ConfigError) as caught:
        toy.select("step", {"use": "learn", "learner": {"use": "sparse", "width": "many", "schedul": {}}, "lerner": 1})
    found = {p.what.partition(":")[0]: p.do for p in caught.value.problems}
    assert found == {"learner.width": None, "learner.schedul": "did you mean 'schedule'?",
                     "lerner": "did you mean 'learner'?"}


def test_use_of_an_unknown_kind_fails_where_it_is_written():
    with pytest.raises(TypeError, match="lerner"):
        Use["lerner"]


def test_a_plain_pydantic_model_can_hold_a_selection(toy):
    chosen = TypeAdapter(Use["learner"]).validate_python("sparse", context={"registry": toy})
    assert chosen.name == "toys/sparse"


def test_configs_are_frozen(toy):
    with pytest.raises(ValueError, match="frozen"):
        toy.select("learner", "sparse").config.width = 3


class Places(ComponentConfig):
    sites: Sites = "*"
    """Where."""


def test_sites_keep_their_form():
    assert Places(sites="resid.*").sites == "resid.*"
    assert Places(sites=["embed", "!resid.3"]).sites == ("embed", "!resid.3")
    assert Places.model_validate(Places(sites=["embed"]).model_dump(mode="json")) == Places(sites=("embed",))


@pytest.mark.parametrize("bad", ["resid..x", ["embed", "Resid.1"], [], 3, [3]])
def test_malformed_sites_are_refused(bad):
    with pytest.raises(ValueError, match="site selector"):
        Places(sites=bad)


# ---- pipelines


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(PIPELINE)
    return path


def test_read_a_pipeline(toy, file):
    spec = read(file, registry=toy)
    assert list(spec.steps) == ["acts", "basis", "eval"]
    assert spec.steps["basis"].selection.config.learner.config.width == 32
    assert spec.steps["basis"].inputs == {"activations": "acts"}
    assert spec.model.name == "toys/toy"
    assert spec.source == file


def test_a_pipeline_round_trips(toy, file):
    spec = read(file, registry=toy)
    again = parse(json.loads(json.dumps(spec.dump())), registry=toy)
    assert again.steps == spec.steps
    assert again.dump() == spec.dump()


def test_problems_name_the_line_and_the_key_and_come_together(toy, file):
    file.write_text(PIPELINE.replace("width: 32", "widht: 32").replace("corpus: lines", "corpus: line")
                    .replace("report: [quiet]", "repot: [quiet]").replace("name: tiny", "name: a/b"))
    with pytest.raises(ConfigError) as caught:
        read(file, registry=toy)
    told = {p.where.removeprefix(f"{file}:"): (p.what.partition(":")[0], p.do) for p in caught.value.problems}
    assert told["11"] == ("steps.basis.learner.widht", "did you mean 'width'?")
    assert told["5"][0] == "steps.acts.corpus"
    assert "did you mean 'lines'?" in told["5"][1]
    assert told["13"] == ("repot", "did you mean 'report'?")
    assert told["2"][0] == "name"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("change", "told"), [
    (("do: learn", "do: lern"), "steps.basis: there is no step 'lern'"),
    (("do: learn", "doo: learn"), "steps.basis: a step says what it does"),
    (("do: learn", "do: learn\n    use: x"), "steps.basis: a step is chosen by `do`"),
    (("from: {activations: acts}", "from: acts"), "steps.basis.from: input should be a valid dictionary"),
    (("reprbasis: 1", "reprbasis: 2"), "reprbasis: the file is written for version 2 of the format"),
    (("reprbasis: 1\n", ""), "reprbasis: this key is required"),
    (("model: toy", "model: {use: toy, layers: 0}"), "model.layers: input should be greater than or equal to 1, got 0"),
])
def test_shape_errors(toy, file, change, told):
    file.write_text(PIPELINE.replace(*change))
    with pytest.raises(ConfigError) as caught:
        read(file, registry=toy)
    assert told in str(caught.value)


def test_a_file_that_holds_no_mapping(toy, file):
    file.write_text("- 1\n")
    with pytest.raises(ConfigError, match="a pipeline is a mapping"):
        read(file, registry=toy)


def test_overrides(toy, file):
    spec = read(file, ["steps.basis.learner.width=64", "seed=7", "model.layers=5", "steps.eval.evaluators=[]",
                       "steps.basis.learner.schedule.rate=1e-2"], toy)
    assert spec.steps["basis"].selection.config.learner.config.width == 64
    assert spec.steps["basis"].selection.config.learner.config.schedule.rate == 0.01
    assert spec.seed == 7
    assert spec.model.config.layers == 5
    assert spec.steps["eval"].selection.config.evaluators == ()


@pytest.mark.parametrize(("text", "told"), [
    ("steps.bais.learner.width=6", "did you mean 'basis'?"),
    ("sed=3", "did you mean 'seed'?"),
    ("steps.basis.lerner.width=6", "did you mean 'learner'?"),
    ("steps.basis.learner.widht=6", "--set steps.basis.learner.widht=6: steps.basis.learner.widht: unknown key"),
    ("seed", "this is not an override"),
    ("seed=[1", "this is not YAML"),
    ("report.4=quiet", "the list has 1 items"),
    ("seed.x=1", "'seed' is a plain value"),
])
def test_wrong_overrides(toy, file, text, told):
    file.write_text(PIPELINE.replace("name: tiny", "name: tiny\nseed: 3"))
    with pytest.raises(ConfigError) as caught:
        read(file, [text], toy)
    assert told in str(caught.value)


def test_schema_covers_every_component_and_has_no_loose_ends(toy):
    schema = pipeline_schema(toy)
    text = json.dumps(schema)
    assert "x-reprbasis-kind" not in text
    references = {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert references <= set(schema["$defs"])
    learner = schema["$defs"]["learner"]
    assert {"sparse", "toys/sparse", "opaque"} <= set(learner["anyOf"][0]["enum"])
    steps = {s["title"]: s for s in schema["properties"]["steps"]["additionalProperties"]["anyOf"]}
    assert steps["learn"]["properties"]["learner"] == {"$ref": "#/$defs/learner", "description": "Which."}
    assert steps["learn"]["required"] == ["do", "from", "learner"]
    assert steps["evaluate"]["properties"]["evaluators"]["items"]["$ref"] == "#/$defs/evaluator"
