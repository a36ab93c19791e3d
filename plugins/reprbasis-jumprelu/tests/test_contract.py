from reprbasis.testing import LearnerContract


class TestJumpReLU(LearnerContract):
    name, config = "jumprelu", {"width": 48}
