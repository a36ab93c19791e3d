"""Names of sites in other libraries, there and back."""

import pytest
from reprbasis_codecs.names import hook, module, of_hook, of_module

from reprbasis.sites import Site

SITES = [Site("embed"), Site("final"), *(Site(n, i) for n in ("resid", "attn_out", "mlp_out") for i in (0, 17))]


@pytest.mark.parametrize("site", SITES, ids=str)
def test_there_and_back(site):
    assert of_hook(hook(site)) == site
    assert of_module(module(site)) == site


def test_other_spellings():
    assert of_hook("blocks.5.hook_resid_pre") == Site("resid", 4)
    assert of_hook("hook_embed") == Site("embed")
    assert of_module("model.layers.3") == of_module("gpt_neox.layers.3") == of_module("transformer.h.3") == Site("resid", 3)
    assert of_module("gpt_neox.layers.3.attention") == Site("attn_out", 3)
    assert of_module("transformer.h.3.mlp") == Site("mlp_out", 3)
    assert of_module("embed_in") == Site("embed")


@pytest.mark.parametrize("name", ["blocks.3.attn.hook_z", "blocks.x.hook_mlp_out", "", None])
def test_no_site_of_the_stream(name):
    assert of_hook(name) is None


def test_no_such_module():
    assert of_module("layers.3.self_attn.q_proj") is None
    assert of_module("something") is None


def test_sites_without_a_name_there():
    assert hook(Site("vision.resid", 2)) is None
    assert module(Site("vision.resid", 2)) == "vision.resid.2"
