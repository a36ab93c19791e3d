from reprbasis.testing import EvaluatorContract, LensContract, StepContract


class TestLogit(LensContract):
    name = "logit"


class TestContrastive(LensContract):
    name = "contrastive"


class TestRidge(LensContract):
    name = "ridge"


class TestTuned(LensContract):
    name, config = "tuned", {"steps": 10, "batch": 32}


class TestTunedFromRidge(LensContract):
    name, config = "tuned", {"steps": 10, "batch": 32, "start": "ridge", "vocabulary": 16}


class TestLens(StepContract):
    name, config = "lens", {"lens": "ridge"}


class TestLenses(EvaluatorContract):
    name, config = "lenses", {"tokens": 96, "resamples": 100, "shown_tokens": 5,
                              "lenses": ["logit", "contrastive", "ridge", {"use": "tuned", "steps": 10, "batch": 32}]}


class TestUnembedding(EvaluatorContract):
    name, config = "unembedding", {"tokens": 96, "resamples": 100, "draws": 8, "read_tokens": 64, "filtered": "resid.*"}
