"""Kind `model`: run a network, capture and edit its sites, show its weights. Data in, data out.

Shapes: B batch, T tokens, V vocabulary, D residual width, H query heads, G key/value heads, E head width, M MLP width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import CapabilityError, SiteError
from ..sites import Site, select
from .base import C, Configured
from .tokens import Example, TokenBatch, TokenSequence


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, read from its config alone (no weights are loaded).

    Args:
        family: adapter's name for the architecture, e.g. `llama`.
        n_layers: blocks of the text decoder.
        d_model: residual width D.
        vocab: rows of the unembedding V.
        n_heads: query heads H.
        n_kv_heads: key/value heads G.
        widths: every site and its width, in execution order.
        modalities: `{"text"}` or `{"text", "image"}`.
        revision: identity of the weights (hash of the config and of the weight files' sizes and heads, or hub commit);
            None when unknown.
        max_tokens: longest sequence the positions allow.
        vision: sites of the vision side and their widths, in execution order (`vision.resid.L`: the tower's stream after its
            block L, one entry a patch; `vision.out`: what the projector gives the decoder, one entry an image token). They
            come before all `widths`, have entries of their own instead of tokens, and are captured and edited like any site;
            `*` does not choose them.
    """

    family: str
    n_layers: int
    d_model: int
    vocab: int
    n_heads: int
    n_kv_heads: int
    widths: Mapping[Site, int]
    modalities: frozenset[str] = frozenset({"text"})
    revision: str | None = None
    max_tokens: int = 2048
    vision: Mapping[Site, int] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites that have one entry a token, in execution order."""
        return tuple(self.widths)

    def select(self, selectors: str | Collection[str | Site]) -> tuple[Site, ...]:
        """Resolve selectors (see `reprbasis.sites.select`): either sites with one entry a token, or sites of the vision side."""
        given = [selectors] if isinstance(selectors, str) else list(selectors)
        names = {site.name for site in self.vision}
        apart = [s for s in given if any(f"{str(s).removeprefix('!')}.".startswith(f"{name}.") for name in names)]
        if not apart:
            return select(given, self.sites)
        if len(apart) < len(given):
            raise SiteError(f"{apart[0]} has one entry a patch, the other sites one a token: they cannot be chosen together",
                            do="choose them one after the other")
        return select(given, tuple(self.vision))

    def depth(self, site: Site) -> int:
        """Position of a site in execution order: index in `sites`; negative for sites of the vision side, which come before."""
        try:
            return self.sites.index(site) if site in self.widths else tuple(self.vision).index(site) - len(self.vision)
        except ValueError:
            raise SiteError(f"the model has no site '{site}'", do="see model.info.sites") from None


@runtime_checkable
class Edit(Protocol):
    """Changes the value of one site during a forward. Write it as a small frozen dataclass."""

    @property
    def site(self) -> Site:
        """Where it applies."""

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        """[B, T, D] -> [B, T, D] ([B, P, D] on the vision side). Must not write into `x`; padding may hold anything."""


@dataclass(frozen=True)
class ForwardResult:
    """What a forward gives back.

    Args:
        sites: captured values, [B, T, D] each, after any edit of that site. Sites of the vision side are [B, P, D]: the
            entries of all images of a row, in the order of the images, padded to the most of a row.
        logits: [B, T, V] for `logits="all"`, [B, 1, V] (at each row's last real token) for `"last"`, None for `"none"`.
        batch: the batch that was run.
        masks: for each captured site of the vision side, [B, P] bool: True on real entries.
    """

    sites: Mapping[Site, Tensor]
    logits: Tensor | None
    batch: TokenBatch
    masks: Mapping[Site, Tensor] = field(default_factory=dict)

    def __getitem__(self, site: Site | str) -> Tensor:
        return self.sites[Site.parse(site) if isinstance(site, str) else site]


@dataclass(frozen=True)
class AttentionWeights:
    """Views (not copies) of one attention layer's weights, per head, and its pure functions.

    Args:
        W_Q: [H, E, D]; W_K, W_V: [G, E, D]; W_O: [H, D, E].
        b_Q, b_K, b_V: [H or G, E] or None; b_O: [D] or None.
        kv_of: [H] the key/value head that serves each query head.
        norm: the layer's input norm, [..., D] -> [..., D].
        q_norm, k_norm: per-head norms applied after the projection and before rotation, or None.
        rotate: (x [..., T, E], positions [..., T]) -> rotated x; identity for models without rotary positions.
        scale: factor on q.k before the softmax.
        window: how many tokens a token sees, itself and those just before it; None for all.
    """

    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    kv_of: Tensor
    norm: Callable[[Tensor], Tensor]
    rotate: Callable[[Tensor, Tensor], Tensor]
    scale: float
    b_Q: Tensor | None = None
    b_K: Tensor | None = None
    b_V: Tensor | None = None
    b_O: Tensor | None = None
    q_norm: Callable[[Tensor], Tensor] | None = None
    k_norm: Callable[[Tensor], Tensor] | None = None
    window: int | None = None


@dataclass(frozen=True)
class MLPWeights:
    """Views of one MLP's weights and the MLP as a pure function of its normed input.

    Args:
        W_in: [M, D] up projection; W_gate: [M, D] or None for ungated MLPs; W_out: [D, M].
        activation: the nonlinearity.
        norm: the layer's input norm.
        function: normed input [..., D] -> output [..., D].
    """

    W_in: Tensor
    W_out: Tensor
    activation: Callable[[Tensor], Tensor]
    norm: Callable[[Tensor], Tensor]
    function: Callable[[Tensor], Tensor]
    W_gate: Tensor | None = None
    b_in: Tensor | None = None
    b_gate: Tensor | None = None
    b_out: Tensor | None = None


@dataclass(frozen=True)
class Unembedding:
    """The way out: `logits = norm(x) @ weight.T + bias`.

    Args:
        weight: [V, D] (a view).
        norm: the final norm, [..., D] -> [..., D].
        gain: [D] elementwise gain of the final norm (ones if it has none).
    """

    weight: Tensor
    norm: Callable[[Tensor], Tensor]
    gain: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Sampling:
    """How to generate. Temperature 0 is greedy. Each sequence draws from its own generator, seeded by (seed, sequence)."""

    max_new: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Start:
    """Continue a forward from a known stream value: everything up to and including `site` is skipped.

    Args:
        site: `embed` or `resid.L`.
        value: [B, T, D] the stream there.
    """

    site: Site
    value: Tensor


class ModelAdapter(Configured[C]):
    """A network behind one data-in, data-out interface. No permanent hooks, no subclass of the network."""

    info: ModelInfo
    provides: ClassVar[frozenset[str]] = frozenset()
    thinking: ClassVar[tuple[str, str] | None] = None
    """Text around what the model thinks before it answers, if it does; tokens between the two are flagged `thinking`."""
    named: ClassVar[Mapping[str, Callable[[], Path]]] = {}
    """Checkpoints that come in Python packages: name -> what finds the directory or file. Misspelled names are
    compared with these."""
    standing: tuple[Edit, ...] = ()
    """Edits in force at every forward and generation, before those of the call; set by `EditPlan.apply` and taken back by it. A
    site that a forward does not compute (before or at `start`, beyond `stop_at`) is not edited."""

    @classmethod
    @abstractmethod
    def describe(cls, config: C) -> ModelInfo:
        """What the model is, without loading weights; equals `cls(config).info`."""

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """The tokenizer (Hugging Face interface)."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @abstractmethod
    def tokenize(self, examples: Sequence[Example], *, max_tokens: int | None = None, first: int = 0) -> list[TokenSequence]:
        """Tokenise: chat template for dialogues, plain text as it stands; `sequence` counts from `first`.

        Flags `special` (template and control tokens, in template position only) and `assistant` (content of assistant turns).

        Raises:
            DataError: an example gives no tokens, or a dialogue meets a tokenizer without a chat template.
        """

    @abstractmethod
    def forward(self, batch: TokenBatch, *, capture: Collection[Site] = (), edits: Sequence[Edit] = (), grad: bool = False,
                start: Start | None = None, stop_at: Site | None = None,
                logits: Literal["all", "last", "none"] = "all") -> ForwardResult:
        """Run once.

        Args:
            batch: padded or packed tokens.
            capture: sites to return.
            edits: applied in order; a site captured and edited is captured after its edits.
            grad: keep the autograd graph; otherwise runs without it.
            start: continue from a stream value instead of from the tokens.
            stop_at: stop once this site is known; needs `logits="none"` (which is then implied).
            logits: at all positions, at each row's last real token, or not at all.

        Raises:
            SiteError: a site that the model does not have, or one that lies before `start` or beyond `stop_at`.
        """

    @abstractmethod
    def generate(self, prompts: Sequence[TokenSequence], *, edits: Sequence[Edit] = (),
                 sampling: Sampling | None = None) -> list[TokenSequence]:
        """Continue each prompt until the model ends its turn or `max_new` tokens; returns prompt + continuation.

        The continuation is flagged `generated` (and `assistant`); the token that ends the turn is kept and flagged `special`.
        Edits are applied at prompt and generated positions.
        """

    @abstractmethod
    def attention(self, layer: int) -> AttentionWeights:
        """Views of an attention layer's weights."""

    @abstractmethod
    def mlp(self, layer: int) -> MLPWeights:
        """Views of an MLP's weights."""

    @abstractmethod
    def unembedding(self) -> Unembedding:
        """Final norm and output matrix."""

    @abstractmethod
    def parameters(self) -> Mapping[str, Tensor]:
        """Every weight by name; editors change these and restore them."""

    def save(self, folder: Path) -> None:
        """Write the model as it is now as a checkpoint (config, safetensors, tokenizer) into an existing directory.

        Raises:
            CapabilityError: this adapter cannot.
        """
        raise CapabilityError(f"{self.full_name} cannot write checkpoints", do="save the edit plan and apply it when needed")

    def batch(self, examples: Sequence[Example], *, side: Literal["left", "right"] = "right",
              max_tokens: int | None = None) -> TokenBatch:
        """Tokenise and pad in one go, on the model's device."""
        sequences = self.tokenize(examples, max_tokens=max_tokens)
        return TokenBatch.pad(sequences, side=side, pad_id=self.pad_id).to(self.device)

    @property
    def pad_id(self) -> int:
        """Token id put on padding; its value never matters, because padding is masked by position."""
        found = getattr(self.tokenizer, "pad_token_id", None)
        return int(found) if found is not None else 0


@dataclass(frozen=True)
class Replace:
    """An `Edit` that sets a site to given values, [B, T, D] or broadcastable, where `where` [B, T] is True (default: all)."""

    site: Site
    value: Tensor
    where: Tensor | None = field(default=None)

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        new = self.value.to(x.dtype).expand_as(x)
        return new if self.where is None else torch.where(self.where[..., None], new, x)
