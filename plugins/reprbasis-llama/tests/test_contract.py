from transformers import LlamaConfig

from reprbasis.testing import ModelContract


def tiny(**changes):
    return LlamaConfig(**{"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
                          "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 256,
                          "tie_word_embeddings": False, **changes})


class TestGrouped(ModelContract):
    name = "llama"

    def hf_config(self):
        return tiny()


class TestTiedEager(ModelContract):
    name, config = "llama", {"attention": "eager"}

    def hf_config(self):
        return tiny(tie_word_embeddings=True, num_key_value_heads=1)


class TestBiasesAndWideHeads(ModelContract):
    name, config = "llama", {"dtype": "float64"}

    def hf_config(self):
        return tiny(attention_bias=True, mlp_bias=True, head_dim=16, num_key_value_heads=4)


class TestHalfPrecision(ModelContract):
    name, config = "llama", {"dtype": "bfloat16"}

    def hf_config(self):
        return tiny(tie_word_embeddings=True)


class TestHalfPrecisionEager(ModelContract):
    name, config = "llama", {"dtype": "bfloat16", "attention": "eager"}

    def hf_config(self):
        return tiny(num_key_value_heads=1)


class TestAllHeadsScaledRotary(ModelContract):
    """Every query head has its own keys; rotary scaling; few positions."""

    name, config = "llama", {"attention": "sdpa"}

    def hf_config(self):
        return tiny(num_key_value_heads=4, num_hidden_layers=4, max_position_embeddings=128,
                    rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
