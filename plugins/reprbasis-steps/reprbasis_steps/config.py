"""Options of the steps."""

from typing import Annotated, Literal

from pydantic import Field

from reprbasis import ComponentConfig, Selection, Sites, Use


class HarvestConfig(ComponentConfig):
    """Options of `harvest`."""

    corpus: Annotated[Selection, Use("corpus")] | None = None
    """Where the text comes from; not read, and not needed, when the port `text` gives the sequences of earlier activations."""
    sites: Sites = "*"
    """Sites whose activations are kept."""
    tokens: int = Field(100_000, ge=1)
    """Stop after this many tokens, training and held-out together."""
    held_out: float = Field(0.1, ge=0, le=0.5)
    """Share of the sequences kept for evaluation only (every k-th)."""
    max_tokens: int = Field(1024, ge=2)
    """Longer sequences are cut to this many tokens."""
    row_tokens: int = Field(512, ge=2)
    """Tokens of a packed row. Sequences in one row never attend to each other."""
    rows: int = Field(8, ge=1)
    """Packed rows in one forward."""
    layout: Literal["dialogues", "blocks"] = "dialogues"
    """Each dialogue whole, or the stream of all dialogues cut into blocks of `row_tokens` (for comparison)."""
    isolate: bool = True
    """Whether dialogues in one row are kept from seeing each other; without, attention leaks between them (for comparison)."""
    shard_tokens: int = Field(4096, ge=1)
    """Tokens of a shard, about: the unit of work that survives an interruption."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """How activations are stored."""


class LearnConfig(ComponentConfig):
    """Options of `learn`."""

    learner: Annotated[Selection, Use("learner")]
    """The kind of dictionary and its options."""
    rows: int = Field(ge=2)
    """Rows to train on; one row is one token at one site. Data repeat in a new order when they run out."""
    sites: Sites = "*"
    """Which of the harvested sites share the dictionary."""
    normaliser: Literal["affine", "scalar", "none"] = "affine"
    """Per-site map to comparable units: subtract the mean and divide by the spread, only divide, or nothing."""
    batch: int = Field(4096, ge=1)
    """Rows of a training step."""
    lr: float | None = Field(None, gt=0)
    """Peak learning rate; by default what the learner asks for."""
    warmup: float = Field(0.05, ge=0, le=1)
    """Share of the steps over which the learning rate rises linearly."""
    decay: float = Field(0.2, ge=0, le=1)
    """Share of the steps over which it falls linearly to 0 at the end."""
    lr_end: float = Field(1.0, gt=0, le=1)
    """Share of the peak that is left when this fall begins; reached along a cosine. 1: the rate stays at its peak until then."""
    clip: float | None = Field(1.0, gt=0)
    """Largest global gradient norm."""
    buffer: int = Field(2**18, ge=2)
    """Rows held by the mixing buffer."""
    norm_cap: float = Field(4.0, gt=0)
    """Rows whose norm is more than this many times the typical one get less weight, so that attention sinks do not rule."""
    repeats: bool = False
    """Whether tokens that repeat the beginning of an earlier dialogue (a shared system prompt) are trained on again."""
    only: tuple[str, ...] = Field((), exclude_if=lambda flags: not flags)  # likewise
    """Train on tokens that carry all of these flags, or with `!` do not: [thinking], [image], ["!special"]."""
    log_every: int = Field(20, ge=1)
    """Steps between two points of the training curves."""
    checkpoint_seconds: float = Field(60.0, ge=0)
    """Time between checkpoints."""
    shards: int = Field(1, ge=1)
    """Under torchrun: processes that share the latents; their number divides that of all processes, the rest divide the rows."""
    # what was learned before there was this choice is still reused: a default is no part of the fingerprint
    device: str = Field("cpu", exclude_if=lambda name: name == "cpu")
    """Where the dictionary is trained, for example cpu or cuda (under torchrun each process's own GPU). Never chosen for you."""
    products: Literal["float32", "bfloat16"] = Field("float32", exclude_if=lambda name: name == "float32")
    """Number format of the large matrix products; the rest stays float32. bfloat16 is faster where the processor has it."""
    seed: int | None = Field(None, ge=0)
    """Of data order and initialisation; null: the seed of the pipeline. For several trainings in one pipeline."""


class EvaluateConfig(ComponentConfig):
    """Options of `evaluate`."""

    evaluators: tuple[Annotated[Selection, Use("evaluator")], ...] = Field(min_length=1)
    """What to measure."""
