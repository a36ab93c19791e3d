"""The step `attribute` on a task of six prompts."""

import pytest

import reprbasis as rb
from reprbasis.errors import SiteError
from reprbasis.interfaces.task import ContrastPair, Task
from reprbasis.interfaces.tokens import Example
from reprbasis.testing import StepContract
from reprbasis.testing.toys import margin, toy_registry


class PromptsConfig(rb.ComponentConfig):
    """No options."""


class Prompts(Task[PromptsConfig]):
    """Texts of four words, one of which changes."""

    def pairs(self, tokenizer, split, seed):
        [yes, no] = tokenizer.convert_tokens_to_ids([" yes", " no"])
        for i in range(6):
            text = f" w{i} w{{}} w7 w{i + 10}"
            yield ContrastPair(Example(text=text.format(20)), Example(text=text.format(21)), (yes,), (no,), {"word": (1,)}, str(i))


class Plugin:
    @rb.hookimpl
    def reprbasis_register(self, register):
        register(rb.Component("task", "six-prompts", PromptsConfig, f"{__name__}:Prompts", "Six prompts", provides={"contrast"}))


@pytest.fixture(autouse=True, scope="module")
def six_prompts():
    toy_registry().add(Plugin(), origin="six-prompts", replace=True)


class TestAttribute(StepContract):
    name, config = "attribute", {"task": "six-prompts", "scorer": {"use": "ig", "steps": 2, "index": "role"}, "prompts": 5,
                                 "batch": 2, "sites": "resid.*"}

    def test_scores_are_those_of_the_scorer(self, tmp_path):
        found = self.run(tmp_path)
        prompts = rb.batches(self.model, rb.create("task", "six-prompts"), n=5, batch=2)
        basis = self.world["basis"].at("resid.*")
        alone = rb.create("scorer", "ig", steps=2, index="role").score(self.model, basis, prompts, margin())
        assert {str(s) for s in found.nodes} == {"resid.0", "resid.1"}
        assert all((found.nodes[s] - v).abs().max() < 1e-5 for s, v in alone.nodes.items())
        assert found.details["n"] == 5
        assert found.details["rows"] == ["word", "rest"]
        assert found.details["task"] == {"use": "six-prompts/six-prompts"}
        assert found.details["kept"] == {"all": 5}

    def test_sites_that_the_basis_lacks_are_named(self, tmp_path):
        with pytest.raises(SiteError, match="resid.7"):
            self.create(sites="resid.7").run(self.context(tmp_path / "s"), **self.inputs())
