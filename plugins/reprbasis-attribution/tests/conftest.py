"""Small worlds with known answers, in float64. Shapes: B batch, D width, K latents, V vocabulary."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from reprbasis.component import ComponentConfig
from reprbasis.interfaces.metric import Metric, Targets
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import TokenBatch, TokenSequence
from reprbasis.runtime.basis import Basis, Normaliser
from reprbasis.testing.toys import LinearModel, ToyDictionary, contrast_batches, toy_model, toy_registry


class CurveConfig(ComponentConfig):
    """No options."""


class Curve(Metric[CurveConfig]):
    """Any function of the last token's logits, [B, V] -> [B]."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(CurveConfig())
        self.function = function

    def __call__(self, result, batch, targets):
        logits = result.logits
        at = 0 if logits.shape[1] == 1 else batch.last()
        return self.function(logits[torch.arange(len(logits)), at])


def double(model: LinearModel) -> LinearModel:
    model.weights = {name: w.double() for name, w in model.weights.items()}
    return model


def mirror_basis(model: LinearModel, sites="*", *, lossy: bool = False, seed: int = 0) -> Basis:
    """The dictionary [I, -I] with a ReLU: codes are the positive and negative parts of x; an error if lossy."""
    chosen, d = model.info.select(sites), model.info.d_model
    rows = torch.cat([torch.eye(d), -torch.eye(d)]).double()
    rows = rows[1:-2] if lossy else rows
    g = torch.Generator().manual_seed(seed)
    shift, scale = torch.randn(len(chosen), d, generator=g).double(), torch.rand(len(chosen), generator=g).double() + 0.5
    learner = toy_registry().create("learner", "toy-dictionary", width=len(rows))
    return Basis(chosen, Normaliser(shift, scale), ToyDictionary(rows, rows.clone(), torch.zeros(d).double(), rectify=True),
                 learner, capabilities=frozenset({"affine-decoder"}))


def linear_world(*, lossy: bool = False) -> tuple[LinearModel, Basis, list[ContrastBatch]]:
    model = double(toy_model())
    return model, mirror_basis(model, lossy=lossy), contrast_batches(model)


def wire_world(clean: list[list[float]], corrupt: list[list[float]]) -> tuple[LinearModel, Basis, list[ContrastBatch]]:
    """Prompts of one token whose latents (at `embed`, positive ones) are given and are the first logits, unchanged."""
    d = len(clean[0])
    model = double(toy_model(layers=1, width=max(d, 2), vocab=64))
    for name in ("W_V", "W_O", "W_in", "W_out"):
        model.weights[f"0.{name}"].zero_()
    model.weights["unembed"] = torch.eye(64, max(d, 2)).double()
    rows, n = [*clean, *corrupt], len(clean)
    model.weights["embed"][:len(rows), :d] = torch.tensor(rows, dtype=torch.float64)

    def side(first: int) -> TokenBatch:
        return TokenBatch.pad([TokenSequence(torch.tensor([first + i]), sequence=i) for i in range(n)])

    learner = toy_registry().create("learner", "toy-dictionary", width=d)
    eye = torch.eye(d, max(d, 2)).double()
    basis = Basis(model.info.select("embed"), Normaliser(torch.zeros(1, max(d, 2)).double(), torch.ones(1).double()),
                  ToyDictionary(eye, eye.clone(), torch.zeros(max(d, 2)).double(), rectify=False), learner)
    targets = Targets(torch.zeros(n, 1, dtype=torch.long), torch.ones(n, 1, dtype=torch.long))
    return model, basis, [ContrastBatch(side(0), side(n), targets)]


@pytest.fixture
def worlds() -> SimpleNamespace:
    """`linear_world`, `wire_world` and `Curve`."""
    return SimpleNamespace(linear_world=linear_world, wire_world=wire_world, Curve=Curve)
