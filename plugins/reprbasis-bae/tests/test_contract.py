from reprbasis.testing import LearnerContract


class TestBAE(LearnerContract):
    name, config = "bae", {"width": 48}


class TestBAEWithEverything(LearnerContract):
    name, config = "bae", {"width": 48, "covariance_bits": 16, "start": 0, "warmup": 0, "revive": 1e-3, "entropy": 0.01}
