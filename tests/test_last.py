"""The last token alone says what a forward says."""

from dataclasses import dataclass

import pytest
import torch

import reprbasis as rb
from reprbasis.errors import CapabilityError
from reprbasis.interfaces.editor import Codebook, EditPlan
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.runtime.last import LastToken
from reprbasis.sites import Site
from reprbasis.testing.models import tiny_checkpoint, tiny_config


@dataclass(frozen=True)
class AddAt:
    """Adds a value at one token of each row."""

    site: Site
    at: torch.Tensor
    value: torch.Tensor

    def __call__(self, x, batch):
        out = x.clone()
        out[torch.arange(len(x)), self.at] += self.value
        return out


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request, tmp_path_factory):
    """Grouped heads; Qwen3 norms queries and keys."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"), tiny_config(request.param))
    return rb.create("model", "llama" if request.param == "llama" else "qwen", checkpoint=str(folder))


def prompts():
    """Of different lengths, padded."""
    g = torch.Generator().manual_seed(0)
    return TokenBatch.pad([TokenSequence(torch.randint(5, 300, (n,), generator=g), sequence=i) for i, n in enumerate((7, 3, 5))])


def test_trials_are_what_forwards_with_the_same_change_give(model):
    batch, blocks = prompts(), model.info.n_layers
    last, end = LastToken(model, batch), Site("resid", blocks - 1)
    change = torch.randn(3, model.info.d_model, generator=torch.Generator().manual_seed(1))
    trials = [(0, change), (0, -change), (blocks - 1, change)]
    found = last.final(trials)
    for (layer, value), got in zip(trials, found, strict=True):
        result = model.forward(batch, capture=[end], edits=[AddAt(Site("attn_out", layer), batch.last(), value)], logits="last")
        assert torch.allclose(got, result[end][torch.arange(3), batch.last()], atol=1e-4)
        assert torch.allclose(last.logits_of(got), result.logits[:, 0], atol=1e-3)
    plain = model.forward(batch, logits="last").logits[:, 0]
    assert torch.allclose(last.logits_of(LastToken(model, batch, 1).final()[0]), plain, atol=1e-3)


def test_weights_count_as_they_are_now(model):
    batch = prompts()
    last = LastToken(model, batch)
    before = last.final()
    weight = next(n for n in model.parameters() if "o_proj" in n)
    with EditPlan({weight: torch.ones_like(model.parameters()[weight])}).applied(model):
        assert not torch.allclose(last.final(), before, atol=1e-2)
    assert torch.equal(last.final(), before)


def test_what_cannot_be_run_so_is_refused(model):
    batch, none = prompts(), torch.zeros(1, model.info.d_model)
    with pytest.raises(ValueError, match="upwards"):
        LastToken(model, batch).final([(1, none), (0, none)])
    shift = Codebook(Site("resid", 0), none, torch.tensor([torch.inf]), none + 1)
    with EditPlan(books=[shift]).applied(model), pytest.raises(CapabilityError, match="do not add up"):
        LastToken(model, batch)
