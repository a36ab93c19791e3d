"""The steps `attribute` and `connect`."""

from dataclasses import replace

import pytest
import torch

import reprbasis as rb
from reprbasis.errors import SiteError
from reprbasis.interfaces.finder import Circuit, Setup
from reprbasis.testing import StepContract
from reprbasis.testing.toys import margin


class TestAttribute(StepContract):
    name, config = "attribute", {"task": "toy-pairs", "scorer": {"use": "ig", "steps": 2, "index": "role"}, "prompts": 5,
                                 "batch": 2, "sites": "resid.*"}

    def test_scores_are_those_of_the_scorer(self, tmp_path):
        found = self.run(tmp_path)
        prompts = rb.batches(self.model, rb.create("task", "toy-pairs"), n=5, batch=2)
        basis = self.world["basis"].at("resid.*")
        alone = rb.create("scorer", "ig", steps=2, index="role").score(self.model, basis, prompts, margin())
        assert {str(s) for s in found.nodes} == {"resid.0", "resid.1"}
        assert all((found.nodes[s] - v).abs().max() < 1e-5 for s, v in alone.nodes.items())
        assert found.details["n"] == 5
        assert found.details["rows"] == ["changed", "last", "rest"]
        assert found.details["task"]["use"].endswith("toy-pairs")
        assert found.details["kept"] == {"all": 5}

    def test_sites_that_the_basis_lacks_are_named(self, tmp_path):
        with pytest.raises(SiteError, match=r"resid\.7"):
            self.create(sites="resid.7").run(self.context(tmp_path / "s"), **self.inputs())


class TestConnect(StepContract):
    name, config = "connect", {"task": "toy-pairs", "prompts": 5, "batch": 3, "steps": 2}

    def artifacts(self, model, folder):
        """A circuit of three nodes at three positions of two sites."""
        found = super().artifacts(model, folder)
        basis = found["basis"].at("resid.*")
        mask = torch.zeros(6, basis.d_dict + 1, dtype=torch.bool)
        mask[1, 3] = mask[4, 5] = mask[5, -1] = True
        setup = Setup(basis.sites, ablation="mean", index="token")
        return found | {"circuit": Circuit(dict.fromkeys(basis.sites, mask), details={"setup": setup.facts()})}

    def test_edges_join_nodes_of_the_circuit(self, tmp_path):
        circuit = self.world["circuit"]
        found = self.run(tmp_path)
        [(pair, table)] = found.edges.items()
        assert [str(s) for s in pair] == ["resid.0", "resid.1"]
        start, source, end, target = table.indices()
        assert circuit.masks[pair[0]][start, source].all()
        assert circuit.masks[pair[1]][end, target].all()
        assert (start <= end).all()
        check = found.details["checks"]["resid.0>resid.1"]
        assert check["row_residual"] < 1e-4

    def test_a_circuit_that_does_not_say_what_it_is_cannot_be_connected(self, tmp_path):
        bare = replace(self.world["circuit"], details={})
        with pytest.raises(rb.errors.UserError, match="ablated"):
            self.create().run(self.context(tmp_path / "s"), **{**self.inputs(), "circuit": bare})
