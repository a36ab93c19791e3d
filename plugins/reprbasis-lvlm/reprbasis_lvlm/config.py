"""Options of the vision-language adapter and of the synthetic scenes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from reprbasis.component import ComponentConfig
from reprbasis.kits.hf_config import HFConfig


class LvlmConfig(HFConfig):
    """Which vision-language checkpoint, and how to run it."""

    checkpoint: str
    """A local directory (config.json, safetensors, tokenizer, image processor) or a Hugging Face hub id."""

    thumbnail: int = Field(64, ge=0)
    """Side, in pixels, of the small picture of each image that is kept for reports; 0 keeps none."""


class ScenesConfig(ComponentConfig):
    """Questions about synthetic scenes, with their answers."""

    count: int = Field(1000, ge=1)
    """Dialogues: a scene, one question about it, and its answer."""

    split: Literal["train", "test"] = "train"
    """Which combinations of colour, shape and place: those a model is trained on, or each scene with one held out from that."""

    turns: int = Field(1, ge=1, le=12)
    """Questions asked about each scene, one after the other (fewer where a scene has fewer)."""
