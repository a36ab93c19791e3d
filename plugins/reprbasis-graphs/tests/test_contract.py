import pytest
import torch

from reprbasis.errors import DataError
from reprbasis.interfaces.finder import Circuit, Setup
from reprbasis.testing import ReporterContract, StepContract


class TestGraphs(ReporterContract):
    name = "graphs"


class TestDraw(StepContract):
    name, config = "draw", {"task": "toy-pairs", "prompts": 6, "batch": 3, "random": 2, "tokens": 200}

    def artifacts(self, model, folder):
        """A circuit of three nodes at three positions of two sites."""
        found = super().artifacts(model, folder)
        basis = found["basis"].at("resid.*")
        mask = torch.zeros(6, basis.d_dict + 1, dtype=torch.bool)
        mask[1, 3] = mask[4, 5] = mask[5, -1] = True
        setup = Setup(basis.sites, ablation="zero", index="token")
        return found | {"circuit": Circuit(dict.fromkeys(basis.sites, mask), details={"setup": setup.facts()})}

    def test_a_circuit_without_nodes_is_not_drawn(self, tmp_path):
        found = self.world["circuit"]
        none = Circuit({s: torch.zeros_like(m) for s, m in found.masks.items()}, details=found.details)
        with pytest.raises(DataError, match="nothing to draw"):
            self.create().run(self.context(tmp_path / "scratch"), **self.inputs(optional=False) | {"circuit": none})
