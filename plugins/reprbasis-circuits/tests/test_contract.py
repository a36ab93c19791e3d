import torch
from reprbasis_circuits.curve import Curve
from reprbasis_circuits.frontier import Frontier

import reprbasis as rb
from reprbasis.interfaces.finder import Circuit, Setup
from reprbasis.runtime.basis import Basis
from reprbasis.testing import FinderContract, StepContract


class TestMask(FinderContract):
    name, config, needs_scores = "mask", {"cost": 0.02, "steps": 60, "repair": 1, "ablation": "corrupt"}, False


class TestMaskShared(FinderContract):
    name, config, needs_scores = "mask", {"cost": 0.02, "steps": 60, "repair": 1, "ablation": "corrupt", "index": "shared"}, False


class TestThreshold(FinderContract):
    name, config = "threshold", {"nodes": 4, "ablation": "corrupt", "index": "shared"}


class TestGreedy(FinderContract):
    name, config, needs_scores = "greedy", {"nodes": 4, "ablation": "corrupt", "index": "shared"}, False


PROMPTS = {"task": {"use": "toy-pairs", "pairs": 12}, "prompts": 8, "batch": 4}
MASK = {"use": "mask", "steps": 20, "unit": "share", "costs": [0.002, 0.02], "repair": 2}


class TestFind(StepContract):
    name, config = "find", {**PROMPTS, "finder": {"use": "mask", "steps": 10, "sites": "resid.*"}}


class TestFrontier(StepContract):
    name, config = "frontier", {**PROMPTS, "held_out": 8, "resamples": 100, "sites": "resid.*", "finders": [MASK], "repeats": 1,
                                "halves": True, "random": 2}


class TestFrontierOfRoles(StepContract):
    name, config = "frontier", {**PROMPTS, "held_out": 8, "resamples": 100, "sites": "resid.*", "index": "role", "random": 2,
                                "finders": [MASK, {"use": "greedy"}], "scorers": ["attribution", "magnitude"]}


class TestFrontierOfSharedMasks(StepContract):
    name, config = "frontier", {**PROMPTS, "held_out": 8, "resamples": 100, "sites": "resid.*", "index": "shared", "random": 2,
                                "finders": [MASK], "scorers": ["attribution"]}


class TestFaithfulness(StepContract):
    name, config = "faithfulness", {**PROMPTS, "held_out": 8, "resamples": 100, "random": 2, "subsets": 2}

    def artifacts(self, model, folder):
        """The circuit says what being in it means."""
        world = dict(super().artifacts(model, folder))
        basis = world["basis"]
        assert isinstance(basis, Basis)
        sites = model.info.select("resid.*")
        generator = torch.Generator().manual_seed(0)
        masks = {s: torch.rand(6, basis.d_dict + 1, generator=generator) < 0.3 for s in sites}
        fill = {s: torch.rand(6, basis.d_dict, generator=generator) for s in sites}
        error_fill = {s: torch.rand(6, basis.d_in, generator=generator) for s in sites}
        world["circuit"] = Circuit(masks, None, {"setup": Setup(sites).facts()}, fill, error_fill)
        return world


def test_a_curve_survives_saving(chain, tmp_path):
    """Repetitions can be measured apart and put together."""
    step = rb.create("step", "frontier", task={"use": "toy-pairs"}, error="node", protect=0, resamples=100, random=2, repeats=1,
                     halves=True, scorers=["attribution"],
                    finders=[{"use": "mask", "steps": 40, "costs": [0.1, 1.2], "repair": 3}])
    world = step.config, rb.registry(), chain.model, chain.basis, chain.metric, chain.held_out
    whole, apart = Frontier(*world), Frontier(*world)
    for repetition, train in enumerate((chain.batches[:2], chain.batches[2:])):
        whole.add(train, repetition).save(tmp_path / str(repetition))
        apart.curves.append(Curve.load(tmp_path / str(repetition)))
    assert whole.findings().measurements == apart.findings().measurements
    names = {m.name for m in whole.findings().measurements}
    assert {"lead", "closer", "iou_seeds", "iou_orders", "iou_halves", "faithfulness_least", "cpr", "nesting"} <= names
