"""What a benchmark asks of a model that does not know everything."""

from reprbasis_editbench.steps import CASES

import reprbasis as rb


def test_what_is_to_stay_is_something_that_the_model_can_do():
    """The small model knows no capitals, but it agrees verbs."""
    model = rb.create("model", "qwen", checkpoint="tiny-qwen3")
    case = CASES["ioi"].case(rb.registry(), model, 0, 4)
    assert list(case.stay) == ["agreement"]
    assert sum(len(item.clean.ids) for item in case.stay["agreement"]) > 4
