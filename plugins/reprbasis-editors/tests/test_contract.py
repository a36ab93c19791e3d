from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch

import reprbasis as rb
from reprbasis.interfaces.editor import EditRequest
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import Example, TokenBatch, TokenSequence
from reprbasis.testing import EditorContract
from reprbasis.testing.models import tiny_checkpoint, tiny_config
from reprbasis.testing.toys import toy_basis


class TestEraseLatents(EditorContract):
    name, config = "erase", {"latents": [1, 4]}


class TestEraseAnswers(EditorContract):
    name, config = "erase", {"layers": [1], "strength": 0.5}


class TestRidge(EditorContract):
    name, config = "ridge", {"budget": 5.0}


class TestRidgeOnAHead(EditorContract):
    name, config = "ridge", {"components": ["head.1.0"], "aim": "push", "goal": None, "budget": 5.0}


class TestFact(EditorContract):
    name, config = "fact", {"budget": 5.0, "peers": 4, "near": 2, "contexts": 1}


class TestNullSpace(EditorContract):
    name, config = "null-space", {"share": 0.5, "among": "mlps", "budget": 5.0}


class TestOnline(EditorContract):
    name, config = "online", {"budget": 5.0, "conflict": 1e-6}


class TestWithdraw(EditorContract):
    name, config = "withdraw", {"goal": -4.0, "budget": 5.0}


class TestAsIf(EditorContract):
    name, config = "as-if", {"budget": 50.0, "strength": 1.0}


class TestComponentSGD(EditorContract):
    name, config = "component-sgd", {"budget": 5.0, "steps": 40, "lr": 0.1}


class TestComponentSGDOfLowRank(EditorContract):
    name, config = "component-sgd", {"budget": 5.0, "rank": 2, "components": ["mlp.1"], "steps": 60, "lr": 0.1, "folds": 2}


class TestFeatureRows(EditorContract):
    name, config = "feature-rows", {"latents": [1, 4], "budget": 5.0}


class TestFeatureRowsChosen(EditorContract):
    name, config = "feature-rows", {"top": 2, "budget": 5.0}


class TestSteer(EditorContract):
    name, config = "steer", {"budget": 5.0}


class TestSteerLatents(EditorContract):
    name, config = "steer", {"latents": [1, 4], "site": "resid.1", "budget": 5.0}


class TestCodebook(EditorContract):
    name, config = "codebook", {"budget": 5.0}


@cache
def tiny():
    folder = tiny_checkpoint(Path(mkdtemp()), tiny_config("llama", tie_word_embeddings=True))
    return rb.create("model", "llama", checkpoint=str(folder))


class TestRouting(EditorContract):
    """On a model whose heads look somewhere: those of the linear toy have neither queries nor keys."""

    name, config = "routing", {"budget": 50.0, "goal": None, "top": 4}

    def world(self):
        model, g = tiny(), torch.Generator().manual_seed(3)
        clean, corrupt = (TokenBatch.pad([TokenSequence(torch.randint(5, 300, (8,), generator=g), sequence=i)
                                          for i in range(4)]) for _ in range(2))
        order = [model.forward(b, logits="last").logits[:, 0] for b in (clean, corrupt)]
        way = order[0] - order[1]
        item = ContrastBatch(clean, corrupt, Targets(way.argmax(-1)[:, None], way.argmin(-1)[:, None]))
        return model, toy_basis(model), EditRequest([item], [Example(text="The keys to the cabinet.")])
