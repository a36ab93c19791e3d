from reprbasis.testing import LearnerContract


class TestSoftTopk(LearnerContract):
    name, config = "soft-topk", {"width": 48}
