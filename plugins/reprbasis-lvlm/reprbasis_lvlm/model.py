"""The vision-language adapter: one class for all families in the table.

The tower and projector run as Transformers runs them, with hooks on the tower's blocks for one call. What the projector
gives overwrites the decoder's stream at the tokens flagged `image`, so what follows is an ordinary decoder. Qwen3-VL adds
features from inside the tower to the stream behind its first blocks (DeepStack, Meng et al. 2024): `vision.deepstack.L` is
what joins after block L, and `resid.L` is the stream with it. In Qwen's decoders, tokens have positions on three axes.

Shapes: B batch, T tokens, D residual width, E head width, P vision entries of a row, M vision entries of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from transformers.vision_utils import get_vision_window_index

from reprbasis.errors import DataError
from reprbasis.interfaces.model import ModelInfo, Start
from reprbasis.interfaces.tokens import Example, TokenBatch, TokenSequence
from reprbasis.kits.contexts import runs
from reprbasis.kits.hf import HFAdapter
from reprbasis.kits.hf_layout import Layout, part
from reprbasis.kits.hf_run import Past, Visitor
from reprbasis.sites import Site

from .config import TINY, LvlmConfig
from .families import FAMILIES, Family
from .images import READERS

_OUT = Site("vision.out")


def tiny() -> Path:
    """The tiny trained model in this package."""
    return Path(__file__).parent / TINY


class LvlmAdapter(HFAdapter[LvlmConfig]):
    """Any model of `FAMILIES`."""

    family = "lvlm"
    architectures = tuple(FAMILIES)
    refused: ClassVar[Mapping[str, str]] = {
        "Qwen3VLMoeForConditionalGeneration":
            "a mixture of experts, which has no single MLP whose weights could be shown or edited in a layer",
        **dict.fromkeys(("LlavaNextForConditionalGeneration", "LlavaOnevisionForConditionalGeneration"),
                        "one of LLaVA's successors, which cut images into tiles and are not in the table of families")}
    named: ClassVar[Mapping[str, Callable[[], Path]]] = {TINY: tiny}
    provides = HFAdapter.provides | {"vision"}

    @classmethod
    def inspect(cls, hf_config: Any, revision: str | None) -> ModelInfo:
        kind = _kind(hf_config)
        info = super().inspect(hf_config, revision)
        width = int(getattr(hf_config.vision_config, kind.width))
        vision = {Site("vision.resid", i): width for i in range(kind.used_depth(hf_config))}
        deep = len(getattr(hf_config.vision_config, "deepstack_visual_indexes", None) or ())
        vision |= {Site("vision.deepstack", i): info.d_model for i in range(deep)}
        return replace(info, family=kind.name, modalities=frozenset({"text", "image"}),
                       vision={**vision, _OUT: info.d_model})

    @classmethod
    def layout_for(cls, hf_config: Any) -> Layout:
        return _kind(hf_config).layout(hf_config)

    def load_network(self, folder: Any) -> Any:
        self._folder = folder
        return AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, self.config.dtype), attn_implementation=self.config.attention,
            use_safetensors=True, trust_remote_code=False, local_files_only=True)

    def __init__(self, config: LvlmConfig) -> None:
        super().__init__(config)
        self.kind = _kind(self.hf_config)
        self.reader = READERS[self.kind.reader](self._folder, self.hf_config, self._tokenizer, config.thumbnail)

    def tokenize(self, examples: Sequence[Example], *, max_tokens: int | None = None,
                 first: int = 0) -> list[TokenSequence]:
        """As for text; images of a message come before its text, those of plain text at its placeholders.

        Flags `image` besides; see `TokenSequence.extra` for what goes along.
        """
        found = [self.reader.expand(s, e) for s, e in zip(super().tokenize(examples, first=first), examples, strict=True)]
        return found if max_tokens is None else [s.cut(max_tokens) for s in found]

    # -- the vision side -----------------------------------------------------------------------------------------------

    def begin(self, batch: TokenBatch, visit: Visitor, start: Start | None) -> Tensor:
        x = super().begin(batch, visit, start)
        places = batch.flag("image") & batch.mask
        images = "pixel_values" in batch.extra
        if not images and bool(places.any()):
            raise DataError("the batch has image tokens but no images", do="keep `extra` of the token sequences")
        deep = any(site.name == "vision.deepstack" for site in self.info.vision)
        if images and (start is None or deep):
            with torch.set_grad_enabled(torch.is_grad_enabled() and visit.wants(self.info.vision)):
                out, joined = self._look(batch, visit)
            at = places.nonzero(as_tuple=True)
            chosen = _match(_keys(batch, at), _entry_keys(batch, out.shape[0]))
            if start is None:
                x = x.index_put(at, out[chosen].to(x.dtype))
            for layer, features in enumerate(joined):
                visit.joins[layer] = torch.zeros_like(x).index_put(at, features[chosen].to(x.dtype))
        elif visit.wants(self.info.vision):
            for site, width in self.info.vision.items():
                _visit(visit, site, x.new_zeros(0, width), torch.zeros(0, dtype=torch.long, device=x.device), len(batch.ids))
        return x

    def _look(self, batch: TokenBatch, visit: Visitor) -> tuple[Tensor, list[Tensor]]:
        """Run the tower and the projector: [M, D] for the tokens of all images in order, and [M, D] for each join."""
        inputs = {k: v for k, v in batch.extra.items() if k not in ("image_grid", "thumbnails")}
        inputs["pixel_values"] = inputs["pixel_values"].to(self._dtype)
        if torch.is_grad_enabled():
            inputs["pixel_values"].requires_grad_()
        if self.kind.reader == "tiles":
            inputs = {k: v[None] for k, v in inputs.items()}
        with self._tower(batch, visit):
            found = self.network.model.get_image_features(**inputs, return_dict=True)
        out, joined = torch.cat(tuple(found.pooler_output)), []
        row = _rows(batch, len(out))
        for i, features in enumerate(getattr(found, "deepstack_features", None) or ()):
            joined.append(_visit(visit, Site("vision.deepstack", i), torch.cat(features), row, len(batch.ids)))
        return _visit(visit, _OUT, out, row, len(batch.ids)), joined

    @contextmanager
    def _tower(self, batch: TokenBatch, visit: Visitor) -> Iterator[None]:
        """Within it, blocks of the tower whose sites are captured or edited visit them."""
        blocks = next(found for path in self.kind.tower if (found := _maybe(self.network, path)) is not None)
        order = self._order(batch) if self.kind.windowed else None

        def hook(site: Site) -> Callable[[nn.Module, Any, Any], Any]:
            def run(module: nn.Module, args: Any, out: Any) -> Any:
                x = out[0] if isinstance(out, tuple) else out
                flat = x.flatten(0, -2)
                if order is not None:
                    flat = flat[order.argsort()]
                flat = _visit(visit, site, flat, _rows(batch, len(flat)), len(batch.ids))
                x = (flat if order is None else flat[order]).view(x.shape)
                return (x, *out[1:]) if isinstance(out, tuple) else x
            return run

        handles = []
        try:
            for site in self.info.vision:
                if site.name == "vision.resid" and visit.wants([site]):
                    # first among the hooks, so that Transformers' own, which collect hidden states, see the edit
                    handles.append(blocks[site.layer].register_forward_hook(hook(site), prepend=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _order(self, batch: TokenBatch) -> Tensor:
        """[M] the patch that stands at each place while the tower runs (windows of neighbours)."""
        vision = self.hf_config.vision_config
        index, _ = get_vision_window_index(batch.extra["image_grid_thw"], vision.spatial_merge_size, vision.window_size,
                                           vision.patch_size)
        unit = vision.spatial_merge_size**2
        return (index.to(self.device)[:, None] * unit + torch.arange(unit, device=self.device)).flatten()

    # -- positions -----------------------------------------------------------------------------------------------------

    def block_inputs(self, x: Tensor, batch: TokenBatch, past: Past | None) -> dict[str, Any]:
        if not self.kind.rotary3:
            return super().block_inputs(x, batch, past)
        if past is not None and "shift" in past.state:
            at = (batch.positions + past.state["shift"][:, None]).expand(3, -1, -1)
        else:
            at = self.rotary_positions(batch)
            if past is not None:
                past.state["shift"] = (at.amax(dim=0) - batch.positions).gather(1, batch.last()[:, None])[:, 0]
        return {"position_embeddings": part(self.network, self.layout.rotary)(x, at), "position_ids": batch.positions}

    def rotary_positions(self, batch: TokenBatch) -> Tensor:
        """[3, B, T] time, row and column that rotate each token's queries and keys; equal on text.

        The tokens of an image share their time; its rows and columns count from there, and text goes on behind the larger.
        """
        out = batch.positions.expand(3, -1, -1).clone()
        owners = batch.owners.get("image_grid")
        if owners is None:
            return out
        image = batch.flag("image")
        for row, segment in owners.unique(dim=0).tolist():
            places = ((batch.segments[row] == segment) & batch.mask[row]).nonzero().flatten()
            frames = batch.extra["image_grid"][(owners == owners.new_tensor([row, segment])).all(1)]
            at = torch.arange(len(places), device=places.device).expand(3, -1).clone()
            for first, size, height, width in runs(image[row][places], frames):
                begin = int(at[0, first])
                cell = torch.arange(size, device=places.device)
                at[:, first:first + size] = begin + torch.stack([cell * 0, cell // width, cell % width])
                rest = torch.arange(len(places) - first - size, device=places.device)
                at[:, first + size:] = begin + max(height, width) + rest
            out[:, row, places] = at
        return out

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """As for text; positions [..., T] are the same on all axes. For image tokens see `rotary_positions`."""
        if not self.kind.rotary3:
            return super().rotate(x, positions)
        cos, sin = part(self.network, self.layout.rotary)(x, positions.reshape(-1, positions.shape[-1]).expand(3, -1, -1))
        cos, sin = (value.view(*positions.shape, -1) for value in (cos, sin))
        left, right = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-right, left], dim=-1) * sin


def _kind(hf_config: Any) -> Family:
    return FAMILIES[next(name for name in hf_config.architectures if name in FAMILIES)]


def _maybe(module: nn.Module, path: str) -> Any:
    """The part at a path, or None."""
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module


def _rows(batch: TokenBatch, entries: int) -> Tensor:
    """[M] batch row of each of the vision entries, which are spread evenly over the inputs they come from."""
    owner = batch.owners["pixel_values"][:, 0].contiguous()
    if entries >= len(owner):
        return owner.repeat_interleave(entries // len(owner))
    return owner[::len(owner) // entries].contiguous()


def _entry_keys(batch: TokenBatch, entries: int) -> Tensor:
    """[M] a number for the (row, segment) of each vision entry; it rises along the batch."""
    owner = batch.owners["pixel_values"]
    keys = owner[:, 0] * batch.ids.shape[1] + owner[:, 1]
    return keys.repeat_interleave(entries // len(keys)) if entries >= len(keys) else keys[::len(keys) // entries].contiguous()


def _keys(batch: TokenBatch, at: tuple[Tensor, ...]) -> Tensor:
    """The same number for tokens."""
    return at[0] * batch.ids.shape[1] + batch.segments[at]


def _match(tokens: Tensor, entries: Tensor) -> Tensor:
    """[n] the entry shown by each image token: the first of its sequence by the first entry, and so on."""
    rank = torch.arange(len(tokens), device=tokens.device) - torch.searchsorted(tokens, tokens)
    found = torch.searchsorted(entries, tokens) + rank
    if len(tokens) and (int(found.max()) >= len(entries) or not torch.equal(entries[found], tokens)):
        raise DataError("the batch has more image tokens than its images give",
                        do="tokenise with this model, and keep the `image` flag and `extra` of the token sequences")
    return found


def _visit(visit: Visitor, site: Site, flat: Tensor, row: Tensor, rows: int) -> Tensor:
    """Visit a site of the vision side, whose entries [M, D] belong to the given batch rows, as [B, P, D]."""
    if not visit.wants([site]):
        return flat
    counts = torch.bincount(row, minlength=rows)
    place = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    laid = flat.new_zeros(rows, int(counts.max()), flat.shape[-1]).index_put((row, place), flat)
    visit.masks[site] = torch.arange(laid.shape[1], device=row.device) < counts[:, None]
    return visit(site, laid)[row, place]
