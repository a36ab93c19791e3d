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
