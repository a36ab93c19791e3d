from reprbasis.testing import EditorContract


class TestEraseLatents(EditorContract):
    name, config = "erase", {"latents": [1, 4]}


class TestEraseAnswers(EditorContract):
    name, config = "erase", {"layers": [1], "strength": 0.5}


class TestRidge(EditorContract):
    name, config = "ridge", {"budget": 5.0}


class TestRidgeOnAHead(EditorContract):
    name, config = "ridge", {"components": ["head.1.0"], "aim": "push", "goal": None, "budget": 5.0}


class TestNullSpace(EditorContract):
    name, config = "null-space", {"share": 0.5, "among": "mlps", "budget": 5.0}


class TestOnline(EditorContract):
    name, config = "online", {"budget": 5.0, "conflict": 1e-6}


class TestComponentSGD(EditorContract):
    name, config = "component-sgd", {"budget": 5.0, "steps": 40, "lr": 0.1}


class TestComponentSGDOfLowRank(EditorContract):
    name, config = "component-sgd", {"budget": 5.0, "rank": 2, "components": ["mlp.1"], "steps": 60, "lr": 0.1, "folds": 2}


class TestFeatureRows(EditorContract):
    name, config = "feature-rows", {"latents": [1, 4], "budget": 5.0}


class TestFeatureRowsChosen(EditorContract):
    name, config = "feature-rows", {"top": 2, "budget": 5.0}


class TestSteer(EditorContract):
    name, config = "steer", {"budget": 5.0}


class TestSteerLatents(EditorContract):
    name, config = "steer", {"latents": [1, 4], "site": "resid.1", "budget": 5.0}


class TestCodebook(EditorContract):
    name, config = "codebook", {"budget": 5.0}
