from reprbasis.testing import EvaluatorContract


class TestManifold(EvaluatorContract):
    name, config = "manifold", {"tokens": 96, "code_tokens": 60, "resamples": 100, "draws": 8, "every": 1, "latents": 0.3,
                                "removed": 6, "share": 0.25}
