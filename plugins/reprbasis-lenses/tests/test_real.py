"""The real model: what is read where, and that the test says no."""

import pytest
import torch

import reprbasis as rb
from reprbasis.interfaces.evaluator import EvaluationInputs

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    model = rb.create("model", "llama", checkpoint="smollm2-135m-instruct")
    sites = ["resid.9", "resid.19", "resid.22", "resid.25", "resid.28", "resid.29"]
    acts = rb.harvest(model, rb.create("corpus", "chat", limit=80), sites=sites, tokens=2400, held_out=0.3,
                      folder=tmp_path_factory.mktemp("acts"))
    basis = rb.fit(rb.create("learner", "relu", width=64), acts, rows=2048, batch=512)
    test = rb.create("evaluator", "unembedding", sites=sites, components="attn_out.9", read=sites,
                     filtered=["resid.9", "resid.19"], kept=[0.5], tokens=600, read_tokens=200, draws=20, resamples=200, atoms=16)
    return test.evaluate(EvaluationInputs(model, basis, acts))


def test_l7_readable_late_and_the_first_directions_carry_no_more_than_random_ones(found):
    top1 = [found.get("top1", condition="logit", site=f"resid.{i}").value for i in (19, 22, 25, 28)]
    assert top1 == sorted(top1)
    assert 0.3 <= top1[-1] <= 0.8
    for site in ("resid.9", "resid.19"):
        top, random = (found.get("filter_kl@0.5", condition=c, site=site).value for c in ("top", "haar"))
        assert top > 0.9 * random, site
        assert found.get("filter_kl@0.5", condition="pca", site=site).value < 0.5 * random
    assert "FAILS" in found.notes[0]


def test_an_affine_map_reads_more_than_the_logit_lens(found):
    for site in ("resid.19", "resid.25"):
        assert found.get("kl", condition="ridge", site=site).value < found.get("kl", condition="logit", site=site).value
    assert torch.isfinite(torch.tensor([m.value for m in found.measurements])).all()
