from typing import ClassVar

from reprbasis.testing import ScorerContract

TOTALS = "scores effects along the direct path to the logits, not the total effect of an intervention"
UNAWARE = "a control: it does not look at the metric"


class TestPatching(ScorerContract):
    name = "patching"


class TestPatchingOfZeros(ScorerContract):
    name, config, baseline = "patching", {"baseline": "zero", "rows": 9}, "zero"


class TestAttribution(ScorerContract):
    name = "attribution"


class TestAttributionPerToken(ScorerContract):
    name, config, baseline = "attribution", {"baseline": "zero", "index": "token"}, "zero"


class TestIntegratedGradients(ScorerContract):
    name, config = "ig", {"steps": 3}


class TestIntegratedGradientsFromZero(ScorerContract):
    name, config, baseline = "ig", {"steps": 2, "rule": "gauss", "baseline": "zero"}, "zero"


class TestIterative(ScorerContract):
    name, config = "iterative-ig", {"steps": 2, "rounds": 1}


class TestDirect(ScorerContract):
    name = "direct"
    exempt: ClassVar = {"test_exact_on_a_linear_model": TOTALS, "test_scores_are_complete": TOTALS}


class TestMagnitude(ScorerContract):
    name = "magnitude"
    exempt: ClassVar = {"test_exact_on_a_linear_model": UNAWARE, "test_scores_are_complete": UNAWARE}


class TestRandom(ScorerContract):
    name = "random"
    exempt: ClassVar = {"test_exact_on_a_linear_model": UNAWARE, "test_scores_are_complete": UNAWARE,
                        "test_batches_are_weighted_by_their_examples": "a number belongs to a node, whatever the batches"}
