"""Cases of the benchmark on the real model."""

import pytest
from reprbasis_editbench.cases import CASES
from reprbasis_editbench.judge import EDITED, RANDOM, UNEDITED, Judge

import reprbasis as rb

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def model():
    return rb.create("model", "llama")


def test_e8_a_preference_is_judged_on_what_was_not_fitted(model):
    case = CASES["ioi"].case(rb.registry(), model, 0, 4)
    assert set(case.unseen) == {"unseen words", "unseen wordings", "both unseen"}
    fitted = {name for pair in case.fitted.pairs for name in (pair.meta["clean"]["io"], pair.meta["clean"]["s1"])}
    unseen = {name for pair in case.unseen["unseen words"].pairs for name in (pair.meta["clean"]["io"], pair.meta["clean"]["s1"])}
    assert not fitted & unseen
    assert not {p.meta["case"] for p in case.fitted.pairs} & {p.meta["case"] for p in case.unseen["both unseen"].pairs}
    assert not {e.text for e in case.request.keep} & {e.text for e in case.neutral}
    plan = rb.create("editor", "rome", goal=0.0, contexts=0, steps=6).edit(model, None, case.request)
    found = Judge(model, case)(plan)
    for probe in ("fitted", *case.unseen):
        before, control = (found.get("logit_diff", condition=f"{c}: {probe}").value for c in (UNEDITED, RANDOM))
        assert before > 3
        assert abs(control - before) < 0.1 * before
    values = [found.get("logit_diff", condition=f"{c}: fitted").value for c in (UNEDITED, EDITED)]
    assert values[1] < values[0] - 1


def test_e7_a_fact_is_changed_and_its_neighbours_are_counted(model):
    case = CASES["capitals"].case(rb.registry(), model, 0, 8)
    plan = rb.create("editor", "rome").edit(model, None, case.request)
    found = Judge(model, case)(plan, control=False)
    assert found.get("wrong_top1", condition=f"{UNEDITED}: fitted").value == 0
    assert found.get("wrong_top1", condition=f"{EDITED}: fitted").value == 1
    assert found.get("kl", condition=f"{EDITED}: neutral").value < 0.005
    assert found.get("kept", condition=f"{EDITED}: unseen neighbours").n == 8
    given = {e.text.split(" is the city")[0] for e in case.request.keep if "capital" in e.text}
    assert not given & {p.clean.text.split(" is the city")[0] for p in case.stay["unseen neighbours"].pairs}
