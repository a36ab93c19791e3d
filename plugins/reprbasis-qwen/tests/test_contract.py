"""Both architectures, over formats, kernels, key/value heads, embeddings and templates. Padding and cache are laws."""

from reprbasis.testing import ModelContract
from reprbasis.testing.models import THINKING_CHATML, tiny_config


class TestQwen2(ModelContract):
    """Biases on queries, keys and values; two key/value heads; own unembedding."""

    name = "qwen"

    def hf_config(self):
        return tiny_config("qwen2", tie_word_embeddings=False)


class TestQwen2Eager(ModelContract):
    name, config = "qwen", {"attention": "eager"}

    def hf_config(self):
        return tiny_config("qwen2", num_key_value_heads=1, tie_word_embeddings=True)


class TestQwen2HalfPrecision(ModelContract):
    name, config = "qwen", {"dtype": "bfloat16"}

    def hf_config(self):
        return tiny_config("qwen2", num_key_value_heads=4)


class TestQwen2HalfPrecisionEager(ModelContract):
    name, config = "qwen", {"dtype": "bfloat16", "attention": "eager"}

    def hf_config(self):
        return tiny_config("qwen2", num_key_value_heads=1, tie_word_embeddings=True)


class TestQwen2SlidingWindow(ModelContract):
    """Upper layers see a few tokens back only."""

    name = "qwen"

    def hf_config(self):
        return tiny_config("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)


class TestQwen3(ModelContract):
    """Norms on queries and keys; heads wider than width / heads; a template that knows thinking."""

    name, chat_template = "qwen", THINKING_CHATML

    def hf_config(self):
        return tiny_config("qwen3", head_dim=16, tie_word_embeddings=True)


class TestQwen3Eager(ModelContract):
    name, config, chat_template = "qwen", {"attention": "eager"}, THINKING_CHATML

    def hf_config(self):
        return tiny_config("qwen3", head_dim=12, num_key_value_heads=1, tie_word_embeddings=False)


class TestQwen3Double(ModelContract):
    """Every query head has its own keys; biases, which the architecture allows; no room for thinking is opened."""

    name, config, chat_template = "qwen", {"dtype": "float64", "thinking": False}, THINKING_CHATML

    def hf_config(self):
        return tiny_config("qwen3", head_dim=16, num_key_value_heads=4, attention_bias=True, tie_word_embeddings=False)


class TestQwen3HalfPrecision(ModelContract):
    name, config = "qwen", {"dtype": "bfloat16"}

    def hf_config(self):
        return tiny_config("qwen3", head_dim=16, num_key_value_heads=4, tie_word_embeddings=False)


class TestQwen3HalfPrecisionEager(ModelContract):
    name, config = "qwen", {"dtype": "bfloat16", "attention": "eager"}

    def hf_config(self):
        return tiny_config("qwen3", head_dim=16, num_key_value_heads=1, tie_word_embeddings=True)
