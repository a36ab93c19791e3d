from reprbasis.testing import EditorContract

FEW = {"lr": 0.02, "steps": 6, "goal": None}
VALUE = {"steps": 12, "goal": None, "kl_weight": 0.0}


class TestGA(EditorContract):
    name, config = "ga", FEW


class TestGradDiff(EditorContract):
    name, config = "graddiff", FEW


class TestGradDiffKL(EditorContract):
    name, config = "graddiff", {**FEW, "retain": "kl", "layers": [1]}


class TestNPO(EditorContract):
    name, config = "npo", FEW


class TestSimNPO(EditorContract):
    name, config = "simnpo", FEW


class TestFineTune(EditorContract):
    name, config = "finetune", {**FEW, "rank": 2}


class TestFineTuneWhole(EditorContract):
    name, config = "finetune", {**FEW, "rank": None, "retain_weight": 0.0}


class TestRMU(EditorContract):
    name, config = "rmu", {**FEW, "layer": 1, "coefficient": 0.1, "retain_weight": 1.0}


class TestRome(EditorContract):
    name, config = "rome", {**VALUE, "layer": 0}


class TestMemit(EditorContract):
    name, config = "memit", {**VALUE, "keep_weight": 1e-3, "layers": [0, 1]}


class TestAlphaEdit(EditorContract):
    name, config = "alphaedit", {**VALUE, "share": 0.5, "ridge": 1e-6}
