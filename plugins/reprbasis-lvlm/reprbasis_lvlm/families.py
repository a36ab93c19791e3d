"""Where each vision-language family keeps its parts: one table entry a family, no subclass of any network.

Paths are those of Transformers 5. Towers that come in several makes (CLIP, SigLIP) list the paths their blocks may have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from reprbasis.kits.hf_layout import Layout


@dataclass(frozen=True)
class Family:
    """One architecture.

    Args:
        name: what `ModelInfo.family` says.
        reader: how images become inputs and placeholders (see `images.py`): `frames`, `tiles` or `grid`.
        text: module path of the text decoder.
        tower: module paths at which the tower's blocks may be.
        projector: module path of the linear map whose output is the stream at image tokens.
        depth: names of the vision config's field for the number of blocks.
        width: the same for the width of the tower's stream.
        rotary3: whether positions have three axes (time, row, column).
        windowed: whether the tower reorders patches into windows while it runs.
    """

    name: str
    reader: str
    text: str
    tower: tuple[str, ...]
    projector: str
    depth: str = "num_hidden_layers"
    width: str = "hidden_size"
    rotary3: bool = False
    windowed: bool = False

    def layout(self, hf_config: Any) -> Layout:
        """Of the text decoder, which is Llama- or Qwen-shaped in all of them; Qwen3 normalises queries and keys."""
        at, norms = self.text, "qwen3" in hf_config.get_text_config().model_type
        return Layout(embed=f"{at}.embed_tokens", blocks=f"{at}.layers", norm=f"{at}.norm", rotary=f"{at}.rotary_emb",
                      q_norm="q_norm" if norms else None, k_norm="k_norm" if norms else None)

    def used_depth(self, hf_config: Any) -> int:
        """Blocks of the tower whose output the decoder depends on: LLaVA may leave out the last ones."""
        depth = int(getattr(hf_config.vision_config, self.depth))
        chosen = getattr(hf_config, "vision_feature_layer", -1)
        layers = [chosen] if isinstance(chosen, int) else list(chosen)
        return max(layer if layer >= 0 else depth + 1 + layer for layer in layers)


_TOWERS = ("model.vision_tower.encoder.layers", "model.vision_tower.vision_model.encoder.layers")
_QWEN = {"reader": "grid", "text": "model.language_model", "tower": ("model.visual.blocks",), "depth": "depth", "rotary3": True}
_QWEN2 = {**_QWEN, "projector": "model.visual.merger.mlp.2"}
_IDEFICS = {"reader": "tiles", "text": "model.text_model", "tower": ("model.vision_model.encoder.layers",),
            "projector": "model.connector.modality_projection.proj"}

FAMILIES: Final[dict[str, Family]] = {
    "LlavaForConditionalGeneration": Family("llava", "frames", "model.language_model", _TOWERS,
                                            "model.multi_modal_projector.linear_2"),
    "Qwen2VLForConditionalGeneration": Family("qwen2-vl", width="embed_dim", **_QWEN2),
    "Qwen2_5_VLForConditionalGeneration": Family("qwen2.5-vl", windowed=True, **_QWEN2),
    "Qwen3VLForConditionalGeneration": Family("qwen3-vl", projector="model.visual.merger.linear_fc2", **_QWEN),
    "Idefics3ForConditionalGeneration": Family("idefics3", **_IDEFICS),
    "SmolVLMForConditionalGeneration": Family("smolvlm", **_IDEFICS),
}
