"""Options of the vision-language adapter, of the synthetic scenes and of the evaluator of concepts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from reprbasis import ComponentConfig, Selection, Sites, Use
from reprbasis.kits.hf_config import HFConfig

from .vocabulary import COLOURS, PLACES, SHAPES

TINY: Final = "tiny-llava"
ASKS: Final = ("colour", "shape", "place")


class LvlmConfig(HFConfig):
    """Which vision-language checkpoint, and how to run it."""

    checkpoint: str = TINY
    """A local directory (config.json, safetensors, tokenizer, image processor), a Hugging Face hub id, or tiny-llava, which is
    in this package."""

    thumbnail: int = Field(64, ge=0)
    """Side, in pixels, of the small picture of each image that is kept for reports; 0 keeps none."""


class ScenesConfig(ComponentConfig):
    """Questions about synthetic scenes, with their answers."""

    count: int = Field(1000, ge=1)
    """Dialogues: a scene, one question about it, and its answer."""

    split: Literal["train", "test"] = "train"
    """Which combinations of colour, shape and place: those a model is trained on, or each scene with one held out from that."""

    objects: int = Field(3, ge=1, le=3)
    """Most objects in a scene."""

    turns: int = Field(1, ge=1, le=12)
    """Questions asked about each scene, one after the other (fewer where a scene has fewer)."""


class VisualQuestionConfig(ComponentConfig):
    """Options of the task `visual-question`."""

    ask: Literal["colour", "shape", "place"] = "colour"
    """What is asked, and what differs between the two images."""

    colours: tuple[str, ...] = Field(tuple(COLOURS), min_length=1)
    """Colours of the object asked about; with one or two, the patch image differs in no other way."""

    shapes: tuple[str, ...] = Field(SHAPES, min_length=1)
    """Its shapes."""

    places: tuple[str, ...] = Field(PLACES, min_length=1)
    """Its places. With one place, a token position means the same in every pair."""

    objects: int = Field(1, ge=1, le=3)
    """Objects in a scene; the others are the same in both images, and differ from the first in colour, shape and place."""

    rival: bool = False
    """With two objects or more: one of the others has the wrong answer (in the patch image the right one), so that both answers
    are in both images and the word in the question decides."""

    size: int = Field(1000, ge=1)
    """Pairs of a split at most."""

    @model_validator(mode="after")
    def _known(self) -> VisualQuestionConfig:
        known: dict[str, tuple[str, ...]] = {"colours": tuple(COLOURS), "shapes": SHAPES, "places": PLACES}
        for name, values in known.items():
            if wrong := [v for v in getattr(self, name) if v not in values]:
                raise ValueError(f"{name}: '{wrong[0]}' is none of {', '.join(values)}")
        if len(getattr(self, self.ask + "s")) < 2:
            raise ValueError(f"asking for the {self.ask} needs two {self.ask}s or more")
        if self.rival and self.objects < 2:
            raise ValueError("rival: true needs two objects or more")
        return self


class ProjectorConfig(ComponentConfig):
    """Options of the editor `projector`."""

    strength: float = Field(1.0, gt=0)
    """Share of the way from the clean image to the patch image."""

    keep_weight: float = Field(1.0, ge=0)
    """Weight of the mean square change at image tokens to keep, against that of the error at those to change."""

    ridge: float = Field(1e-4, gt=0)
    """Weight of the map's own size, relative to the mean square of what it reads."""


class SeeAsConfig(ComponentConfig):
    """Options of the step `see-as`."""

    editors: tuple[Annotated[Selection, Use("editor")], ...] = Field(min_length=1)
    """Who makes the edit; each is measured beside a random change of the same size."""

    ask: Literal["colour", "shape"] = "colour"
    """The property."""

    thing: str = "red"
    """Its value that is seen as another."""

    target: str = "blue"
    """The other."""

    objects: int = Field(1, ge=1, le=3)
    """Objects in a scene."""

    prompts: int = Field(64, ge=2)
    """Pairs that editors are given (split `train`)."""

    keep: int = Field(48, ge=0)
    """Prompts to keep that editors are given, of each kind of question, about objects of other values (split `train`)."""

    held_out: int = Field(100, ge=10)
    """Prompts of each kind that the edit is measured on (split `test`)."""

    @model_validator(mode="after")
    def _two(self) -> SeeAsConfig:
        known = tuple(COLOURS) if self.ask == "colour" else SHAPES
        if self.thing == self.target or not {self.thing, self.target} <= {*known}:
            raise ValueError(f"thing and target must be two of {', '.join(known)}")
        names = [use.name for use in self.editors]
        if len({*names}) < len(names):
            raise ValueError("name each editor once")
        return self


class ConceptsConfig(ComponentConfig):
    """Options of `concepts`."""

    corpus: Annotated[Selection, Use("corpus")] | None = None
    """The corpus that was harvested, if its examples say in their meta (`regions`) what the images show; null: words only."""

    groups: Mapping[str, tuple[str, ...]] = Field(default_factory=lambda: {"colour": tuple(COLOURS), "shape": SHAPES})
    """Groups of concepts of which an object or a word has one at most. A concept is told from the others of its group."""

    sites: Sites = "*"
    """Sites of the basis whose activations of a latent are added up."""

    tokens: int = Field(50_000, ge=64)
    """Training tokens that latents are chosen on, and held-out tokens they are measured on, at most (each)."""

    share: float = Field(0.5, gt=0, le=1)
    """An image token shows an object if at least this share of it lies within the object's box."""

    resamples: int = Field(1000, ge=100)
    """Bootstrap draws (whole sequences are drawn) for the 95 % intervals."""

    contexts: int = Field(8, ge=2)
    """Top-activating contexts on a card, half of them image tokens if there are images."""
