import pytest

from reprbasis.testing import CodecContract


class Given(CodecContract):
    """The suite on a basis over three sites with very different scales."""

    codes = "jumprelu"

    @pytest.fixture(autouse=True)
    def _given(self, make_basis):
        self.given = make_basis

    def make_basis(self):
        return self.given(self.codes)


class TestSAELens(Given):
    name = "saelens"


class TestSAELensStandard(Given):
    name, codes = "saelens", "relu"


class TestSAELensTopK(Given):
    name, codes = "saelens", "topk"


class TestSAELensGated(Given):
    name, codes = "saelens", "gated"


class TestSAELensHalf(Given):
    name, codes, config, rtol = "saelens", "relu", {"dtype": "bfloat16"}, 0.1


class TestDictionaryLearning(Given):
    name = "dictionary-learning"


class TestDictionaryLearningReLU(Given):
    name, codes = "dictionary-learning", "relu"


class TestDictionaryLearningTopK(Given):
    name, codes = "dictionary-learning", "topk"


class TestDictionaryLearningGated(Given):
    name, codes = "dictionary-learning", "gated"


class TestSparsify(Given):
    name, codes = "sparsify", "topk"


class TestLlamascopium(Given):
    name = "llamascopium"


class TestLlamascopiumReLU(Given):
    name, codes = "llamascopium", "relu"


class TestLlamascopiumTopK(Given):
    name, codes = "llamascopium", "topk"
