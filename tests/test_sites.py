"""Sites and site selectors."""

import pytest

from reprbasis.errors import SiteError
from reprbasis.sites import Site, check_selector, select

DEPTH = 6
MODEL = (Site("embed"), *(Site(name, i) for i in range(DEPTH) for name in ("attn_out", "mlp_out", "resid")),
         Site("final"), Site("vision.resid", 0), Site("vision.resid", 1))


@pytest.mark.parametrize("text", ["embed", "resid.14", "vision.resid.2", "attn_out.0"])
def test_parse_is_the_inverse_of_str(text):
    assert str(Site.parse(text)) == text


@pytest.mark.parametrize("text", ["", "Resid.1", "resid.-1", "resid.1.2.", "a b", "resid..1"])
def test_malformed_sites(text):
    with pytest.raises(SiteError):
        Site.parse(text)


@pytest.mark.parametrize(("selectors", "chosen"), [
    ("embed", ["embed"]),
    ("resid.2", ["resid.2"]),
    ("resid.-1", ["resid.5"]),
    ("resid.-6", ["resid.0"]),
    ("mlp_out.0:6:2", ["mlp_out.0", "mlp_out.2", "mlp_out.4"]),
    ("resid.4:", ["resid.4", "resid.5"]),
    ("resid.:2", ["resid.0", "resid.1"]),
    ("resid.1::4", ["resid.1", "resid.5"]),
    ("resid.-2:", ["resid.4", "resid.5"]),
    ("vision.resid.*", ["vision.resid.0", "vision.resid.1"]),
    (["final", "embed"], ["embed", "final"]),
    (["resid.*", "!resid.1:5"], ["resid.0", "resid.5"]),
    (["resid.0", "resid.0"], ["resid.0"]),
])
def test_selectors(selectors, chosen):
    assert [str(s) for s in select(selectors, MODEL)] == chosen


def test_everything_in_execution_order():
    assert select("*", MODEL) == MODEL


def test_a_selector_list_may_hold_sites():
    assert select([Site("resid", 3)], MODEL) == (Site("resid", 3),)


@pytest.mark.parametrize(("selectors", "told"), [
    ("resid.6", "the model has 6 layers of 'resid' (0 to 5)"),
    ("resid.-7", "the model has 6 layers"),
    ("resid.0:7", "the model has 6 layers"),
    ("resid", "needs a layer"),
    ("embed.0", "has no layers"),
    ("rasid.0", "did you mean 'resid'?"),
    ("resid.0:4:0", "step 0"),
    ("resid.3:3", "no site is selected"),
    (["resid.*", "!resid.*"], "no site is selected"),
    ([], "an empty list"),
    ("resid.x y", "is not a site selector"),
])
def test_wrong_selectors(selectors, told):
    with pytest.raises(SiteError) as caught:
        select(selectors, MODEL)
    assert told in str(caught.value)
    assert caught.value.exit_code == 2


def test_check_selector_needs_no_model():
    assert check_selector("resid.0:30:4") is None
    assert check_selector("!resid.-1") is None
    assert "is not a site selector" in check_selector("Resid.1").what
