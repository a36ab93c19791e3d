"""What `learn` refuses before anything runs."""

import reprbasis as rb
from reprbasis.interfaces.model import ModelInfo
from reprbasis.sites import Site

INFO = ModelInfo(family="toy", n_layers=1, d_model=8, vocab=9, n_heads=1, n_kv_heads=1,
                 widths={Site("embed"): 8, Site("resid", 0): 8}, revision=None)


def problems(**options):
    step = rb.registry().select("step", {"use": "learn", "learner": {"use": "jumprelu", "width": 8}, "rows": 100, **options})
    return [p.what for p in rb.registry().load("step", step.name).check(step.config, INFO)]


def test_a_device_that_is_not_there():
    assert problems() == []
    [message] = problems(device="cuda:99")
    assert message.startswith("the device 'cuda:99' cannot be used here")


def test_short_products_of_a_learner_that_has_none():
    assert problems(products="bfloat16") == []
    assert problems(products="bfloat16", learner={"use": "bae", "width": 8}) == [
        "the learner 'reprbasis-bae/bae' takes its products in float32 only"]


def test_choices_added_later_are_no_part_of_the_fingerprint_while_they_are_defaults():
    learn = {"use": "learn", "learner": {"use": "jumprelu", "width": 8}, "rows": 100}
    plain, other = (rb.registry().select("step", {**learn, **more}) for more in ({}, {"products": "bfloat16"}))
    assert not {"device", "products"} & plain.dump().keys()
    assert other.dump()["products"] == "bfloat16"
