"""Options of the model `gpt2`. Imports no torch."""

from reprbasis.kits.hf_config import HFConfig


class Gpt2Config(HFConfig):
    """Checkpoint, dtype, device and attention come from `HFConfig`; add what your family needs."""
