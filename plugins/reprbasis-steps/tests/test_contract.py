from reprbasis.testing import StepContract

CORPUS = {"use": "toy-words", "examples": 24}


class TestHarvest(StepContract):
    name, config = "harvest", {"corpus": CORPUS, "sites": ["resid.*", "embed"], "tokens": 200, "row_tokens": 32,
                               "shard_tokens": 64}


class TestLearn(StepContract):
    name, config = "learn", {"learner": {"use": "toy-dictionary", "width": 12}, "rows": 1024, "batch": 64, "buffer": 512}


class TestEvaluate(StepContract):
    name, config = "evaluate", {"evaluators": [{"use": "reconstruction", "tokens": 64, "resamples": 100}]}
