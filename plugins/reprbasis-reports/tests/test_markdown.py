"""The results page says what was run and puts every number beside its control."""

import reprbasis as rb
from reprbasis.artifacts.store import save
from reprbasis.interfaces.evaluator import Context, FeatureCard, Findings, Measurement
from reprbasis.interfaces.reporter import RunRecord, StepRecord


def test_the_page(tmp_path):
    rows = [Measurement("ev", value, 100, value - 0.1, value + 0.1, condition, site)
            for site, values in (("resid.0", (0.8, 0.2)), ("resid.1", (0.3, 0.4)))
            for condition, value in zip(("global", "untrained"), values, strict=True)]
    rows.append(Measurement("kl", 1.25, 90, 1.0, 1.5, "global", "all resid.*", "nats"))
    context = Context(["a|b", "\n", "`c`"], [0, 2.0, 0], 1, "resid.1")
    card = FeatureCard(7, 0.1, 2.0, {"resid.1": 0.9}, [context], [(" x", 1.0)])
    folder = save(Findings(rows, [], [card], ["Held-out text: 100 tokens."]), tmp_path / "eval-0")
    run = RunRecord("demo", tmp_path, [StepRecord("eval", "x/evaluate", "0", folder, "findings", "done", 12.0, made=12.0)],
                    {"checkpoint": "tiny", "revision": "abc"}, 3, "2026-01-02T03:04:05", "examples/demo.yaml",
                    ["steps.a.b=[1, 2]"])
    text = rb.create("reporter", "markdown", comment="It works.").run_ended(run, rb.registry()).read_text()
    assert "`reprbasis run examples/demo.yaml --set 'steps.a.b=[1, 2]'`. Date: 2026-01-02. Seed: 3" in text
    assert "- Held-out text: 100 tokens." in text
    assert "It works." in text
    assert "| ev | global > untrained | 1 of 2 sites | resid.1 |" in text
    assert "| ev | global > mean (0 by definition) | 2 of 2 sites | none |" in text
    assert "| all resid.* | kl | global | 1.25 [1, 1.5] | 90 |" in text
    assert "| resid.0 | 100 | 0.8 [0.7, 0.9] | 0.2 [0.1, 0.3] |" in text
    assert "| 7 | resid.1 90% | `a\\|b`**`\\n`**`'c'` | ` x` |" in text


def test_a_failed_run_has_a_page_too(tmp_path):
    step = StepRecord("a", "x/harvest", "0", tmp_path / "no", "activations", "failed")
    run = RunRecord("demo", tmp_path, [step], {}, 0, "2026")
    text = rb.create("reporter", "markdown").run_ended(run, rb.registry()).read_text()
    assert "| a | x/harvest | failed | - |" in text


def test_several_evaluations_have_their_medians_and_the_time_of_their_own_inputs(tmp_path):
    steps = [StepRecord("acts", "x/harvest", "f0", tmp_path / "no", "activations", "failed", made=100.0)]
    for i, (name, values) in enumerate((("small", (0.2, 0.4, 0.9)), ("large", (0.1, 0.3, 0.5)))):
        rows = [Measurement("fvu", v, 10, None, None, c, f"resid.{j}") for c, offset in (("global", 0), ("untrained", 5))
                for j, v in enumerate(v + offset for v in values)]
        rows.append(Measurement("dead_share", 0.25, 10, condition="global"))
        folder = save(Findings(rows), tmp_path / name, fingerprint=f"e{i}", inputs={"activations": "f0", "basis": f"b{i}"})
        steps += [StepRecord(f"learn-{name}", "x/learn", f"b{i}", tmp_path / "no", "basis", "failed", made=7.0 + i),
                  StepRecord(name, "x/evaluate", f"e{i}", folder, "findings", "reused", made=1.0)]
    run = RunRecord("demo", tmp_path, steps, {}, 0, "2026")
    text = rb.create("reporter", "markdown", compare=["fvu", "dead_share", "l0"]).run_ended(run, rb.registry()).read_text()
    assert "| evaluation | seconds | fvu | dead_share | l0 |" in text
    assert "| small | 7 | 0.4 | 0.25 |  |" in text
    assert "| large | 8 | 0.3 | 0.25 |  |" in text


def test_evaluations_side_by_side(tmp_path):
    """One table per site, one row per evaluation; what is the same in all of them is told once."""
    steps = []
    for name, value in (("first_eval", 0.5), ("second_eval", 0.25)):
        rows = [Measurement("mse", 2.0, 9, 1.5, 2.5, "mean", "resid.3"),
                Measurement("mse", value, 9, None, None, "global", "resid.3"),
                Measurement("l0", 40.0, 9, 38.0, 42.0, "global", "resid.3"),
                Measurement("other", 7.0, 9, None, None, "global", "resid.3")]
        folder = save(Findings(rows, [], [], ["The same note.", f"Of {name}."]), tmp_path / name)
        steps.append(StepRecord(name, "x/evaluate", "0", folder, "findings", "done", 1.0))
    run = RunRecord("demo", tmp_path, steps, {}, 0, "2026-01-02")
    text = rb.create("reporter", "markdown", compare=["mse", "l0"]).run_ended(run, rb.registry()).read_text()
    table = text[text.index("### resid.3"):].splitlines()[2:7]
    assert table == ["| evaluation | condition | mse | l0 |", "|---|---|---|---|", "| (all) | mean | 2 [1.5, 2.5] |  |",
                     "| first_eval | global | 0.5 | 40 [38, 42] |", "| second_eval | global | 0.25 | 40 [38, 42] |"]
    assert "\n- The same note.\n" in text[:text.index("## Steps")]
    assert text.count("The same note.") == 1
    assert text.index("- first_eval: Of first_eval.") > text.index("### resid.3")  # what one evaluation says comes last
    assert "What beats what" not in text
