"""Options of the codecs. Imports no torch."""

from typing import Literal

from pydantic import Field

from reprbasis import ComponentConfig


class ExchangeConfig(ComponentConfig):
    """What every format lets you choose."""

    site: str | None = None
    """Import: the site of the basis, such as `resid.12`; None: the one the files name."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Export: number format on disk."""

    fold: Literal["codes", "norms"] = "codes"
    """Export: how the normaliser goes into the weights. `codes`: codes stay as they are, decoder rows are divided by the scale;
    `norms`: decoder rows stay as they are (unit norm), codes come out in the units of the raw activations.
    """


class SAELensConfig(ExchangeConfig):
    """Options of the codec `saelens`."""

    input_scale: float | None = Field(default=None, gt=0)
    """Import: the factor that training put on the activations, for checkpoints that expect scaled inputs and do not hold it
    (`normalize_activations: expected_average_only_in` without `activation_scaler.json`).
    """


class DictionaryLearningConfig(ExchangeConfig):
    """Options of the codec `dictionary-learning`."""

    threshold: float | None = Field(default=None, ge=0)
    """Import: the threshold of a BatchTopK checkpoint whose own was never set, because training ended too early."""


class SparsifyConfig(ExchangeConfig):
    """Options of the codec `sparsify`."""


class LlamascopiumConfig(ExchangeConfig):
    """Options of the codec `llamascopium`."""
