from reprbasis.testing import EvaluatorContract


class TestReconstruction(EvaluatorContract):
    name, config = "reconstruction", {"tokens": 96, "resamples": 100}


class TestReconstructionWithPerSite(EvaluatorContract):
    name, config = "reconstruction", {"tokens": 64, "resamples": 100, "sites": "resid.*", "per_site": "resid.1",
                                      "per_site_rows": 1024}


class TestAtlas(EvaluatorContract):
    name, config = "atlas", {"tokens": 256, "control_tokens": 128, "features": 5, "contexts": 3, "promoted": 3}


class TestFast(EvaluatorContract):
    name, config = "fast", {"tokens": 96, "resamples": 100}
