"""Base of model adapters for Hugging Face decoder-only models. A family is a `Layout` table plus small overrides::

    class LlamaAdapter(HFAdapter[LlamaConfig]):
        family, architectures, layout = "llama", ("LlamaForCausalLM",), Layout()

The decoder's own blocks are run one by one; `attn_out` and `mlp_out` are read and edited by hooks that live for one
call. Parameters do not require gradients (an editor that trains them says so itself); with `grad=True` the stream does,
from the embedding on, so every captured site can be differentiated at no cost for the weights.

Shapes: B batch, T tokens, D residual width, V vocabulary, H query heads, G key/value heads, E head width.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..errors import DataError, SiteError, UserError
from ..interfaces.model import (
    AttentionWeights,
    Edit,
    ForwardResult,
    MLPWeights,
    ModelAdapter,
    ModelInfo,
    Sampling,
    Start,
    Unembedding,
)
from ..interfaces.tokens import Example, Message, TokenBatch, TokenSequence
from ..runtime.device import usable
from ..runtime.products import hasten
from ..sites import Site
from .hf_config import HFConfig
from .hf_files import Checkpoint, conversion_target, converted, locate, quiet
from .hf_generate import generate
from .hf_layout import Layout, linear, part
from .hf_run import Past, Visitor, attention_mask, windows
from .hf_tokens import Encoder

C = TypeVar("C", bound=HFConfig)
_log = logging.getLogger(__name__)
_MUCH = 1 << 30
_EMBED, _FINAL = Site("embed"), Site("final")


class HFAdapter(ModelAdapter[C]):
    """Runs a Hugging Face decoder. Loads safetensors only, never remote code.

    One call at a time: hooks and caches belong to the network, so threads must not share an adapter.
    """

    family: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    refused: ClassVar[Mapping[str, str]] = {}
    """Architectures of the same family that it does not run, and why."""
    layout: Layout = Layout()
    thinking: ClassVar[tuple[str, str] | None] = ("<think>", "</think>")
    """As for every model: here two tokens; nothing is flagged `thinking` if the tokenizer lacks them."""
    provides = frozenset({"gradients", "generate", "chat", "weights"})

    def __init__(self, config: C) -> None:
        super().__init__(config)
        device = usable(config.device)
        found = self.locate(config, weights=True)
        folder = converted(found.path) if found.gguf else found.path
        self._folder = folder
        self.hf_config = _checked(type(self), read_config(Checkpoint(folder)), config.checkpoint)
        self.info = self.inspect(self.hf_config, found.identity)
        self.layout = self.layout_for(self.hf_config)
        _tell_widening(self.hf_config, config.dtype, folder)
        with quiet():
            self.network = self.load_network(folder).eval().requires_grad_(False).to(device)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        hasten(self.network)
        self._encoder = Encoder(self._tokenizer, thinking=self.thinking, template=self.template_options(),
                                parts="image" in self.info.modalities)
        self._blocks: Sequence[nn.Module] = list(part(self.network, self.layout.blocks))
        self._windows = windows(self.hf_config.get_text_config(), self.info.n_layers)

    # -- what a family may override ------------------------------------------------------------------------------------

    @classmethod
    def locate(cls, config: C, *, weights: bool) -> Checkpoint:
        """Find the checkpoint that the config names."""
        return locate(config.checkpoint, config.revision, weights=weights, named=cls.named)

    @classmethod
    def inspect(cls, hf_config: Any, revision: str | None) -> ModelInfo:
        """`ModelInfo` from the Hugging Face config."""
        text = hf_config.get_text_config()
        layers, width = int(text.num_hidden_layers), int(text.hidden_size)
        sites = [_EMBED, *(Site(name, i) for i in range(layers) for name in ("attn_out", "mlp_out", "resid")), _FINAL]
        return ModelInfo(
            family=cls.family, n_layers=layers, d_model=width, vocab=int(text.vocab_size),
            n_heads=int(text.num_attention_heads),
            n_kv_heads=int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
            widths=dict.fromkeys(sites, width), revision=revision, max_tokens=int(text.max_position_embeddings))

    @classmethod
    def layout_for(cls, hf_config: Any) -> Layout:
        """Where the parts are; families whose architectures differ choose here."""
        return cls.layout

    def load_network(self, folder: Any) -> Any:
        """The network, from a directory with safetensors."""
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, self.config.dtype), attn_implementation=self.config.attention,
            use_safetensors=True, trust_remote_code=False, local_files_only=True)

    def template_options(self) -> Mapping[str, Any]:
        """Further variables for the chat template."""
        return {}

    def embed(self, batch: TokenBatch) -> Tensor:
        """The stream before block 0, [B, T, D]."""
        out: Tensor = part(self.network, self.layout.embed)(batch.ids)
        return out if self.layout.positions is None else out + part(self.network, self.layout.positions)(batch.positions)

    def begin(self, batch: TokenBatch, visit: Visitor, start: Start | None) -> Tensor:
        """The stream that the first block run is given, [B, T, D], before its own site is visited."""
        return self.embed(batch) if start is None else start.value.to(self.device, self._dtype)

    def block_inputs(self, x: Tensor, batch: TokenBatch, past: Past | None) -> dict[str, Any]:
        """Keyword arguments that every block gets besides the stream, the mask and the cache."""
        if self.layout.rotary is None:
            return {}
        return {"position_embeddings": part(self.network, self.layout.rotary)(x, batch.positions),
                "position_ids": batch.positions}

    def head(self, x: Tensor) -> Tensor:
        """Logits from the final vector, [..., D] -> [..., V]."""
        out: Tensor = part(self.network, self.layout.head)(x)
        return out

    # -- the interface -------------------------------------------------------------------------------------------------

    @classmethod
    def describe(cls, config: C) -> ModelInfo:
        found = cls.locate(config, weights=False)
        return cls.inspect(_checked(cls, read_config(found), config.checkpoint), found.identity)

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        weight: Tensor = part(self.network, self.layout.embed).weight
        return weight.device

    def tokenize(self, examples: Sequence[Example], *, max_tokens: int | None = None,
                 first: int = 0) -> list[TokenSequence]:
        return [self._encoder.encode(e, sequence=first + i, max_tokens=max_tokens) for i, e in enumerate(examples)]

    def forward(self, batch: TokenBatch, *, capture: Collection[Site] = (), edits: Sequence[Edit] = (),
                grad: bool = False, start: Start | None = None, stop_at: Site | None = None,
                logits: Literal["all", "last", "none"] = "all") -> ForwardResult:
        batch = batch if batch.ids.device == self.device else batch.to(self.device)
        self._check_length(batch)
        wanted = logits if stop_at is None else "none"
        touched = {*capture, *(e.site for e in edits)}
        first, last = self._span(touched, start, stop_at, wanted)
        always = [e for e in self.standing if start is None or e.site != start.site]
        visit = Visitor(batch, frozenset(capture), [*always, *edits])
        with torch.set_grad_enabled(grad):
            x = self.begin(batch, visit, start)
            if grad and not x.requires_grad:
                x = x.detach().requires_grad_()
            x = visit(_EMBED if start is None else start.site, x)
            x = self._run(x, batch, visit, first, last)
            out = None
            if last == self.info.n_layers and (wanted != "none" or _FINAL in touched or stop_at == _FINAL):
                x = visit(_FINAL, part(self.network, self.layout.norm)(x))
                if wanted == "last":
                    x = x[torch.arange(x.shape[0], device=x.device), batch.last()][:, None]
                out = None if wanted == "none" else self.head(x)
        return ForwardResult(visit.seen, out, batch, visit.masks)

    @torch.no_grad()
    def generate(self, prompts: Sequence[TokenSequence], *, edits: Sequence[Edit] = (),
                 sampling: Sampling | None = None) -> list[TokenSequence]:
        if not prompts:
            return []
        self._span({e.site for e in edits}, None, None, "last")
        if (longest := max(map(len, prompts))) > self.info.max_tokens:
            raise DataError(f"a prompt has {longest} tokens, the model takes {self.info.max_tokens}", do="shorten it")

        def step(batch: TokenBatch, past: Past) -> Tensor:
            visit = Visitor(batch, frozenset(), [*self.standing, *edits])
            x = self._run(visit(_EMBED, self.begin(batch, visit, None)), batch, visit, 0, self.info.n_layers, past)
            return self.head(visit(_FINAL, part(self.network, self.layout.norm)(x))[:, -1])

        cache = DynamicCache()  # keeps every token: windows are in the mask
        return generate(step, cache, prompts, sampling or Sampling(), stop=self.stop_ids,
                        max_tokens=self.info.max_tokens, pad_id=self.pad_id, device=self.device,
                        thinking=self._encoder.marks)

    def attention(self, layer: int) -> AttentionWeights:
        block, at, heads, groups = self._block(layer), self.layout, self.info.n_heads, self.info.n_kv_heads
        module = part(block, at.attn)
        (q, b_q), (k, b_k), (v, b_v) = self._qkv(module)
        o, b_o = linear(part(module, at.o))
        return AttentionWeights(
            W_Q=q.view(heads, -1, q.shape[1]), W_K=k.view(groups, -1, k.shape[1]), W_V=v.view(groups, -1, v.shape[1]),
            W_O=o.view(o.shape[0], heads, -1).permute(1, 0, 2), b_Q=None if b_q is None else b_q.view(heads, -1),
            b_K=None if b_k is None else b_k.view(groups, -1), b_V=None if b_v is None else b_v.view(groups, -1),
            b_O=b_o, kv_of=torch.arange(heads, device=self.device) // (heads // groups), rotate=self.rotate,
            norm=part(block, at.attn_norm), q_norm=part(module, at.q_norm) if at.q_norm else None,
            k_norm=part(module, at.k_norm) if at.k_norm else None, scale=float(module.scaling),
            window=self._windows[layer])

    def _qkv(self, module: nn.Module) -> list[tuple[Tensor, Tensor | None]]:
        """(weight [heads*E, D], bias) of the three projections: views, also of one that does all."""
        at, heads, groups = self.layout, self.info.n_heads, self.info.n_kv_heads
        if at.qkv is None:
            return [linear(part(module, name)) for name in (at.q, at.k, at.v)]
        weight, bias = linear(part(module, at.qkv))
        wide = weight.shape[0] // (heads + 2 * groups)
        sizes = [heads * wide, groups * wide, groups * wide]
        biases = [None] * 3 if bias is None else torch.split(bias, sizes)
        return list(zip(torch.split(weight, sizes), biases, strict=True))

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotary position embedding in the half-split convention: x [..., T, E], positions [..., T] -> [..., T, E]."""
        if self.layout.rotary is None:
            return x
        cos, sin = part(self.network, self.layout.rotary)(x, positions)
        turned, rest = x[..., :cos.shape[-1]], x[..., cos.shape[-1]:]  # some families rotate only a part of E
        left, right = turned.chunk(2, dim=-1)
        turned = turned * cos + torch.cat([-right, left], dim=-1) * sin
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned

    def mlp(self, layer: int) -> MLPWeights:
        block, at = self._block(layer), self.layout
        module = part(block, at.mlp)
        (up, b_up), (down, b_down) = linear(part(module, at.up)), linear(part(module, at.down))
        gate, b_gate = linear(part(module, at.gate)) if at.gate else (None, None)
        return MLPWeights(W_in=up, W_gate=gate, W_out=down, b_in=b_up, b_gate=b_gate, b_out=b_down,
                          activation=part(module, at.act), norm=part(block, at.mlp_norm), function=module)

    def unembedding(self) -> Unembedding:
        norm = part(self.network, self.layout.norm)
        weight, bias = linear(part(self.network, self.layout.head))
        return Unembedding(weight=weight, bias=bias, norm=norm, gain=norm.weight)

    @cached_property
    def _named(self) -> Mapping[str, Tensor]:
        return MappingProxyType(dict(self.network.named_parameters()))  # walking the modules costs as much as a small layer

    def parameters(self) -> Mapping[str, Tensor]:
        return self._named

    def save(self, folder: Path) -> None:
        with quiet():
            self.network.save_pretrained(folder)
            self._tokenizer.save_pretrained(folder)
        for file in self._folder.glob("*process*.json"):  # of images
            shutil.copyfile(file, folder / file.name)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end a turn: the generation config's, the tokenizer's, and what the chat template puts."""
        named = GenerationConfig.from_model_config(self.hf_config).eos_token_id
        own = getattr(self.network, "generation_config", None)
        found: set[int] = {i for i in (self.tokenizer.eos_token_id,) if i is not None}
        for ids in (named, own and own.eos_token_id):
            found |= set(ids) if isinstance(ids, list) else set() if ids is None else {ids}
        if self.tokenizer.chat_template:
            [turn] = self.tokenize([Example(messages=(Message("user", "a"), Message("assistant", "a")))])
            after = int(turn.flags["assistant"].nonzero()[-1]) + 1
            if after < len(turn) and int(turn.ids[after]) in self.tokenizer.all_special_ids:
                found.add(int(turn.ids[after]))
        return frozenset(found)

    # -- how -----------------------------------------------------------------------------------------------------------

    @property
    def _dtype(self) -> torch.dtype:
        weight: Tensor = part(self.network, self.layout.embed).weight
        return weight.dtype

    def _block(self, layer: int) -> nn.Module:
        if not 0 <= layer < self.info.n_layers:
            raise SiteError(f"the model has no layer {layer}", do=f"use a layer from 0 to {self.info.n_layers - 1}")
        return self._blocks[layer]

    def _check_length(self, batch: TokenBatch) -> None:
        limit = self.info.max_tokens
        if batch.ids.shape[1] > limit and (longest := int(batch.positions.max()) + 1) > limit:
            raise DataError(f"a sequence has {longest} tokens, the model takes {limit}",
                            do=f"set max_tokens to {limit} or less")

    def _span(self, touched: Collection[Site], start: Start | None, stop_at: Site | None,
              logits: str) -> tuple[int, int]:
        """First block to run and the one before which to stop. Checks all sites."""
        ends = [s for s in (start.site if start else None, stop_at) if s is not None]
        depth = {s: self.info.depth(s) for s in {*touched, *ends}}
        if start is not None:
            if start.site.name not in ("embed", "resid"):
                raise SiteError(f"a forward cannot start from '{start.site}'", do="start from embed or resid.L")
            if early := [str(s) for s in depth if depth[s] < depth[start.site]]:
                raise SiteError(f"{', '.join(early)} lies before the start '{start.site}'",
                                do="start earlier or leave it out")
        if stop_at is not None and (late := [str(s) for s in depth if depth[s] > depth[stop_at]]):
            raise SiteError(f"{', '.join(late)} lies beyond stop_at '{stop_at}'", do="stop later or leave it out")
        first = 0 if start is None or start.site.layer is None else start.site.layer + 1
        end = stop_at
        if end is None and logits == "none":  # nothing deeper can be seen
            end = max(depth, key=depth.__getitem__, default=_EMBED)
        if end is None or end == _FINAL:
            return first, self.info.n_layers
        return first, 0 if end.layer is None or end in self.info.vision else end.layer + 1

    def _run(self, x: Tensor, batch: TokenBatch, visit: Visitor, first: int, last: int,
             past: Past | None = None) -> Tensor:
        """Blocks `first` to `last - 1`."""
        if first >= last:
            return x
        inputs = self.block_inputs(x, batch, past)
        explicit = self.config.attention == "eager"
        masks = {w: attention_mask(batch, past, w, x.dtype, explicit=explicit) for w in set(self._windows[first:last])}
        cache = None if past is None else past.cache
        with visit.hooked(self._blocks, self.layout, first, last):
            for layer in range(first, last):
                out = self._blocks[layer](x, attention_mask=masks[self._windows[layer]], past_key_values=cache,
                                          use_cache=cache is not None, **inputs)
                x = out[0] if isinstance(out, tuple) else out
                x = visit(Site("resid", layer), x + visit.joins[layer] if layer in visit.joins else x)
        return x


def _tell_widening(hf_config: Any, dtype: str, folder: Path) -> None:
    """Say so when weights are run in a wider format than they are stored in and that costs much memory."""
    stored, asked = getattr(hf_config, "dtype", None), getattr(torch, dtype)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if isinstance(stored, torch.dtype) and asked.itemsize > stored.itemsize and size > _MUCH:
        kept = str(stored).removeprefix("torch.")
        _log.warning("the weights are stored as %s and run as %s, which takes %.1f GB instead of %.1f; dtype: %s keeps them",
                     kept, dtype, size / 1e9 * asked.itemsize / stored.itemsize, size / 1e9, kept)


def read_config(found: Checkpoint) -> Any:
    """The Hugging Face config of a checkpoint; of a GGUF file that is not converted yet, from its header."""
    if found.gguf and not (target := conversion_target(found.path)).is_dir():
        with quiet():
            return AutoConfig.from_pretrained(found.path.parent, gguf_file=found.path.name, local_files_only=True)
    folder = target if found.gguf else found.path
    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def architectures(hf_config: Any) -> tuple[str, ...]:
    """Names of the network's classes; configs read from GGUF headers name none, so it goes by the model type."""
    usual = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(hf_config.model_type)
    return tuple(getattr(hf_config, "architectures", None) or ([usual] if usual else ()))


def _checked(cls: type[HFAdapter[Any]], hf_config: Any, checkpoint: str) -> Any:
    """The config, if this adapter is for its architecture."""
    names = architectures(hf_config)
    if not set(names) & set(cls.architectures):
        what = " / ".join(names) or f"model type '{hf_config.model_type}'"
        if why := next((cls.refused[n] for n in names if n in cls.refused), None):
            raise UserError(f"'{checkpoint}' is {what}: {why}", do=f"this adapter runs {' / '.join(cls.architectures)}")
        raise UserError(f"'{checkpoint}' is {what}; this adapter runs {' / '.join(cls.architectures)}",
                        do=f"needs an adapter for {what}: `reprbasis plugins` shows the models that are installed")
    return hf_config

