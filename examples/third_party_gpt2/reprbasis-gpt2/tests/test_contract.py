from reprbasis.testing import ModelContract


class TestGpt2(ModelContract):
    """A tiny random network of the adapter's family; override `hf_config` for other shapes."""

    name = "gpt2"
