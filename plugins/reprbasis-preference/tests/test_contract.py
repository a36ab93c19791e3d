from reprbasis.testing import EvaluatorContract, StepContract


class TestFeatureMap(EvaluatorContract):
    name, config = "preference", {"null": 200, "chunk": 5}


class TestFeatureMapOfBareFeatures(EvaluatorContract):
    name, config = "preference", {"mlp": "mlp", "contrast": False, "layers": [1], "features": 6, "top": 2}


class TestPrefer(StepContract):
    name, config = "prefer", {"task": "toy-pairs", "prompts": 8, "batch": 4, "null": 200}


class TestInteract(StepContract):
    name, config = "interact", {"null": 200, "chunk": 5, "edges": 6, "most_active": 1.0, "tokens": 200}
