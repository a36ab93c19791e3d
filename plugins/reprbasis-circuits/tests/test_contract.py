from reprbasis.testing import FinderContract


class TestMask(FinderContract):
    name, config, needs_scores = "mask", {"cost": 0.02, "steps": 60, "ablation": "corrupt"}, False


class TestMaskShared(FinderContract):
    name, config, needs_scores = "mask", {"cost": 0.02, "steps": 60, "ablation": "corrupt", "index": "shared"}, False


class TestThreshold(FinderContract):
    name, config = "threshold", {"nodes": 4, "ablation": "corrupt", "index": "shared"}


class TestGreedy(FinderContract):
    name, config, needs_scores = "greedy", {"nodes": 4, "ablation": "corrupt", "index": "shared"}, False
