from reprbasis.testing import LearnerContract


class TestGated(LearnerContract):
    name, config = "gated", {"width": 48}
