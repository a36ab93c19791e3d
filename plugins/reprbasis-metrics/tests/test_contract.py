from reprbasis.testing import MetricContract


class TestCrossEntropy(MetricContract):
    name = "ce"


class TestKL(MetricContract):
    name = "kl"


class TestLogitDifference(MetricContract):
    name = "logit-diff"


class TestProbability(MetricContract):
    name = "probability"


class TestAccuracy(MetricContract):
    name = "accuracy"


class TestForcedChoice(MetricContract):
    name = "forced-choice"
