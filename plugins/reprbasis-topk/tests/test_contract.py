from reprbasis.testing import LearnerContract


class TestTopK(LearnerContract):
    name, config = "topk", {"width": 48, "k": 2}


class TestBatchTopK(LearnerContract):
    name, config = "batchtopk", {"width": 48, "k": 2}
