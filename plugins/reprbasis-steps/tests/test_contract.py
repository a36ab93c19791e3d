import pytest

from reprbasis.errors import DataError
from reprbasis.testing import StepContract
from reprbasis.testing.toys import toy_activations

CORPUS = {"use": "toy-words", "examples": 24}


class TestHarvest(StepContract):
    name, config = "harvest", {"corpus": CORPUS, "sites": ["resid.*", "embed"], "tokens": 200, "row_tokens": 32,
                               "shard_tokens": 64}


class TestLearn(StepContract):
    name, config = "learn", {"learner": {"use": "toy-dictionary", "width": 12}, "rows": 1024, "batch": 64, "buffer": 512}


class TestEvaluate(StepContract):
    name, config = "evaluate", {"evaluators": [{"use": "reconstruction", "tokens": 64, "resamples": 100}]}

    def inputs(self, *, optional=True):
        """`test` is other text than the basis was trained on."""
        found = super().inputs(optional=optional)
        return found | {"test": toy_activations(self.model, seed=1)} if optional else found

    def test_further_text_is_measured_instead_of_the_held_out_part(self, tmp_path):
        own, further = self.run(tmp_path / "a", optional=False), self.run(tmp_path / "b")
        assert own.notes[0] != further.notes[0]
        assert "Held-out text" in further.notes[0]

    def test_training_text_as_test_is_refused(self, tmp_path):
        context = self.context(tmp_path / "scratch")
        with pytest.raises(DataError, match="repeats the beginning of a training sequence"):
            self.create().run(context, **{**self.inputs(), "test": self.world["activations"]})
