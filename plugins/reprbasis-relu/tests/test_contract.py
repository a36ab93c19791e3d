from reprbasis.testing import LearnerContract


class TestReLU(LearnerContract):
    name, config = "relu", {"width": 48}
