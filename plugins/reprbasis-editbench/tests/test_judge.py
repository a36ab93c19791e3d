"""What is said of an edit, on small models with known answers."""

from pathlib import Path

import pytest
import torch
from reprbasis_editbench import memory
from reprbasis_editbench.cases import CASES, Preference, neutral
from reprbasis_editbench.hub import table
from reprbasis_editbench.judge import EDITED, RANDOM, UNEDITED, Judge, Stress
from reprbasis_editbench.probes import Case
from reprbasis_editbench.stream import one_by_one, stream
from reprbasis_editbench.stress import changed_bytes, coarser, relearn, residue

import reprbasis as rb
from reprbasis.config.wishes import Wish
from reprbasis.errors import DataError, UserError
from reprbasis.interfaces.editor import EditPlan, EditRequest
from reprbasis.interfaces.tokens import Example
from reprbasis.kits.probes import Neutral, rows, said_twice
from reprbasis.runtime.batches import Batches
from reprbasis.runtime.wishes import asked
from reprbasis.testing.models import tiny_checkpoint, tiny_config
from reprbasis.testing.toys import PLANTED, contrast_batches, toy_model

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"), tiny_config("llama", max_position_embeddings=1024))
    return rb.create("model", "llama", checkpoint=str(folder))


@pytest.fixture
def planted():
    """A toy in which coordinates carry the answer, its case, and the plan that turns them in the last layer."""
    model = toy_model(planted=PLANTED)
    found = Batches(contrast_batches(model))
    case = Case("toy", EditRequest(found), "indifference", found[:1], {"held": found[1:] or found}, {"same": found},
                [Example(text=" w1 w2 w3", key="a"), Example(text=" w4 w5", key="b")])
    weight = model.parameters()["1.W_out"]
    delta = torch.zeros_like(weight)
    for i in PLANTED:
        delta[i] = -6 * weight[i]
    return model, case, EditPlan({"1.W_out": delta})


def test_fitted_and_held_out_stand_side_by_side_with_both_controls(planted):
    model, case, plan = planted
    found = Judge(model, case)(plan, stress=Stress(relearn=(1, 2)))
    for probe in ("fitted", "held"):
        before, after, random = (found.get("logit_diff", condition=f"{c}: {probe}") for c in (UNEDITED, EDITED, RANDOM))
        assert after.value < before.value
        assert abs(random.value - before.value) < abs(after.value - before.value)
        assert before.n == after.n == random.n
    assert found.get("kept", condition=f"{UNEDITED}: same").value == 1
    assert found.get("kl", condition=f"{UNEDITED}: neutral").value == 0
    assert found.get("kl", condition=f"{EDITED}: neutral").value > 0
    assert found.get("logit_diff", condition=f"{EDITED}, int8: held").value == pytest.approx(
        found.get("logit_diff", condition=f"{EDITED}: held").value, rel=0.2)
    again = [found.get("logit_diff", condition=f"{EDITED}, relearned {k}: held").value for k in (1, 2)]
    assert found.get("logit_diff", condition=f"{EDITED}: held").value < again[0] < again[1]
    assert found.get("residue", condition=f"{EDITED}: held", site="resid.0").value == pytest.approx(
        found.get("residue", condition=f"{UNEDITED}: held", site="resid.0").value)
    assert found.figures[0].series.keys() == {UNEDITED, EDITED}


def test_judging_leaves_the_model_bit_for_bit(planted):
    model, case, plan = planted
    before = {k: v.clone() for k, v in model.parameters().items()}
    Judge(model, case)(plan, stress=Stress())
    assert all(torch.equal(v, before[k]) and not v.requires_grad for k, v in model.parameters().items())


def test_the_last_layer_of_the_residue_is_the_output(planted):
    model, case, _ = planted
    assert torch.allclose(residue(model, case.fitted)[-1], rows(model, case.fitted)["logit_diff"], atol=1e-5)


def test_rounding_to_many_bits_changes_little_and_is_taken_back(tiny):
    [item] = asked(tiny, [Wish("The keys to the")]).request.change
    fine, coarse, plain = (coarser(tiny, 16, lambda: rows(tiny, [item])["logit_diff"]),
                           coarser(tiny, 3, lambda: rows(tiny, [item])["logit_diff"]), rows(tiny, [item])["logit_diff"])
    assert abs(fine - plain) < 1e-2 < abs(coarse - plain)
    assert torch.equal(rows(tiny, [item])["logit_diff"], plain)


def test_relearning_brings_the_answer_back(tiny):
    found = asked(tiny, [Wish("The keys to the", "cabinet")]).request.change
    prob = relearn(tiny, found, lambda: rows(tiny, found)["answer_prob"].mean(), steps=(1, 3), lr=1e-3)
    assert rows(tiny, found)["answer_prob"].mean() < prob[1] < prob[3]


def test_changed_bytes_leave_out_what_stays_zero():
    delta = torch.zeros(4, 6)
    delta[1, 2:4] = torch.tensor([3.0, 4.0])
    assert changed_bytes(EditPlan({"a": delta})) == 8


def test_divergence_is_zero_without_change_and_position_0_is_left_out(tiny):
    texts = Neutral(tiny, [Example(text="The keys to the cabinet are here."), Example(text="Numbers: 1 2 3")])
    assert torch.equal(texts.kl(tiny), torch.zeros(len(texts.group), dtype=torch.float64))
    assert len(texts.group) == sum(len(s) - 1 for s in tiny.tokenize([Example(text="The keys to the cabinet are here."),
                                                                      Example(text="Numbers: 1 2 3")]))


def test_neutral_texts_to_fit_and_to_measure_are_different():
    fit, measure = ({e.text for e in neutral(half)} for half in (0, 1))
    assert len(fit) == len(measure) == 12
    assert not fit & measure


def test_repeated_tokens_are_said_twice(tiny):
    [one, two] = said_twice(tiny, length=5, n=2)
    assert torch.equal(one.ids[:5], one.ids[5:])
    assert not torch.equal(one.ids, two.ids)
    assert not set(one.ids.tolist()) & set(tiny.tokenizer.all_special_ids)


def test_the_table_of_benchmarks_covers_the_config():
    from typing import get_args

    from reprbasis_editbench.config import Benchmark

    assert set(CASES) == set(get_args(Benchmark))


def test_any_task_makes_a_preference():
    task = rb.registry().select("task", {"use": "sva", "set": "simple"})
    assert Preference.of(task).options == {"set": "simple"}


def test_teaching_and_its_metrics(tiny):
    world = memory.Taught.make(tiny, n=5, forgotten=1, epochs=16, lr=5e-3)
    assert world.full.details["losses"][-1] < 0.6 * world.full.details["losses"][0]
    scores = {}
    for name, plan in {"full": world.full, "retain": world.without}.items():
        with plan.applied(tiny):
            scores[name] = {m.name: m.value for m in memory.tofu_scores(tiny, world, name, generate=name == "full")}
    assert scores["retain"]["forget_quality"] == 1
    assert scores["retain"]["privleak"] == pytest.approx(0)
    assert scores["full"]["forget_quality"] < 1
    assert scores["full"]["forget_prob"] > scores["retain"]["forget_prob"]
    assert scores["full"]["privleak"] < 0
    assert sum(name.split("_")[0] in ("retain", "ra", "wf") for name in scores["full"]) == 9
    with world.full.applied(tiny):
        request = world.request(tiny)
    assert all(b.targets.wrong is not None for b in request.change)
    whole = world.request_of_answers(tiny, together=3)
    refusal = world.request_of_answers(tiny, " No.").change[0].targets
    assert {item.question for item in world.retain} < {example.key for example in request.keep}
    assert [int(b.clean.sequences.max()) for b in whole.change] == [2, 1]
    assert bool((refusal.answer == -1).all())
    assert tiny.tokenizer.decode(refusal.wrong.flatten()).startswith(" No.")
    for item, batch in zip(world.forget, request.change, strict=True):
        at = int(batch.roles["subject"][0, 0]) + 1
        assert tiny.tokenizer.decode(batch.clean.ids[0, :at]).endswith(item.subject)
        assert tiny.tokenizer.decode(batch.targets.answer.flatten()).strip() == item.value
    assert memory.relearned(tiny, [(i.prompt, i.answer) for i in world.forget], [(i.prompt, i.answer) for i in world.forget],
                            lr=1e-3) > 0


def test_strangers_are_nobody():
    known = {items[0].subject for items in memory.authors(12, 1)}
    found = memory.strangers(known, "x")
    assert found == memory.strangers(known, "x") != memory.strangers(known, "y")
    assert not known & set(found)
    assert not {a.split()[0] for a in known} & {f.split()[0] for f in found}
    assert memory.authors(12, 1) != memory.authors(12, 2)


def test_a_passage_is_taught_and_measured(tiny):
    told = memory.Told.make(tiny, epochs=2, lr=1e-3)
    before = {m.name: m.value for m in memory.muse_scores(tiny, told, "x", generate=False)}
    with told.full.applied(tiny):
        after = {m.name: m.value for m in memory.muse_scores(tiny, told, "x", generate=False)}
        values = told.request(tiny)
    assert before.keys() == {"extraction_strength", "extraction_strength_compat", "exact_memorization", "prob", "privleak"}
    assert after["prob"] > before["prob"]
    assert before["privleak"] == pytest.approx(0)
    assert after["privleak"] < 0
    [whole] = told.request_of_answers(tiny).change
    start, rest = told.rest(tiny)
    assert start + rest == told.passage.text
    assert len(whole.targets.answer) == len(tiny.tokenize([Example(text=told.passage.text)])[0]) - told.shown
    assert len(values.change[0].targets.answer) <= len(whole.targets.answer)
    assert "".join(told.passage.sentences) == told.passage.text


def test_a_stream_counts_all_edits_so_far(planted):
    model, case, plan = planted
    cases = [Case(str(i), case.request, "replace", case.fitted, {"paraphrases": case.fitted},
                  {"unseen neighbours": case.fitted}, case.neutral) for i in range(3)]
    found = stream(model, cases, one_by_one(model, lambda c: plan if c.name == "0" else EditPlan()), look=(1, 3), label="naive")
    assert found.get("reliability", condition="naive: after 3").n == 3
    with plan.applied(model):
        turned = float(rows(model, case.fitted)["wrong_top1"].mean())
    assert found.get("reliability", condition="naive: after 1").value == turned
    assert found.get("forgetting", condition="naive").value == 0


@pytest.mark.parametrize("name", ["tofu", "muse-news", "wmdp-bio"])
def test_rows_of_the_real_data_sets_are_read(name):
    found = list(rb.create("corpus", "unlearning", dataset=name, path=str(FIXTURES / f"{name}.jsonl")).examples())
    assert found
    if name == "tofu":
        assert found[0].messages[1].content == "Ana Frey was born in Bern."
        assert found[0].meta["perturbed_answer"] == ["In Rome.", "In Oslo."]
    if name == "muse-news":
        assert [e.messages is None for e in found] == [False, False, True]
    if name == "wmdp-bio":
        assert found[0].messages[0].content.endswith("B. an apple\nC. a chair\nD. a lamp")
        assert found[0].messages[1].content == "B"


def test_wrong_data_is_named(tmp_path):
    with pytest.raises(UserError, match="did you mean 'tofu'"):
        list(rb.create("corpus", "unlearning", dataset="tofo").examples())
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:1"):
        list(rb.create("corpus", "unlearning", dataset="tofu", path=str(path)).examples())
    assert all(entry["id"].count("/") == 1 for entry in table().values())
