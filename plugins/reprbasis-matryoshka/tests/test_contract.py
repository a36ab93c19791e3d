from reprbasis.testing import LearnerContract


class TestMatryoshka(LearnerContract):
    name, config = "matryoshka", {"width": 48, "k": 2}
