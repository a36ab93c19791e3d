"""From images to model inputs and to the tokens that stand for them.

A chat template writes one placeholder token for an image. A `Reader` prepares the image and says by which tokens its
placeholder is replaced; the tokens that the projector's output is written to are flagged `image`, those around them (row
and column marks) are template. A placeholder that a user wrote into a message is text and stays as it is.

Shapes: H, W pixels; S side of a thumbnail; T tokens.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from reprbasis.errors import DataError, UserError
from reprbasis.interfaces.tokens import Example, TokenSequence

_DATA = "data:image/"


@dataclass(frozen=True)
class Picture:
    """An image made ready.

    Args:
        inputs: name -> [n, ...] what the model is given.
        tokens: ids that replace the placeholder.
        frames: [F, 2] rows and columns of the tokens of each frame (one frame, or several tiles and the whole).
        shown: [F, S, S, 3] uint8 what each frame shows, small.
    """

    inputs: Mapping[str, Tensor]
    tokens: Sequence[int]
    frames: Tensor
    shown: Tensor | None


class Reader(ABC):
    """Prepares images for one checkpoint with its own image processor, in the form that needs no torchvision.

    Args:
        folder: the checkpoint.
        hf_config: its config.
        tokenizer: its tokenizer.
        thumbnail: side S of the small pictures kept; 0 for none.
    """

    def __init__(self, folder: Path, hf_config: Any, tokenizer: Any, thumbnail: int) -> None:
        self.folder, self.hf_config, self.tokenizer, self.thumbnail = folder, hf_config, tokenizer, thumbnail
        self.token = int(hf_config.image_token_id)

    @cached_property
    def processor(self) -> Any:
        """The image processor; loaded when the first image comes, so that text needs neither it nor Pillow.

        Raises:
            UserError: the checkpoint has none, or it needs a package that is missing.
        """
        from transformers import AutoImageProcessor

        try:
            return AutoImageProcessor.from_pretrained(self.folder, backend="pil", local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            told = str(error).strip().partition("\n")[0]
            raise UserError(f"the image processor of this checkpoint cannot be used: {told}", where=str(self.folder),
                            do="the folder needs preprocessor_config.json (or processor_config.json); the processor must have "
                               "a Pillow form (pip install pillow) or torchvision must be installed") from error

    def expand(self, found: TokenSequence, example: Example) -> TokenSequence:
        """The sequence with the example's images in the place of its placeholders, and their inputs in `extra`.

        Raises:
            DataError: there are not as many placeholders as images, or an image cannot be read.
        """
        order = [i for m in example.messages or () for i in m.images] or range(len(example.images))
        places = (found.ids == self.token) & (found.flags["special"] if example.messages is not None else True)
        if int(places.sum()) != len(order):
            raise DataError(f"the text has {int(places.sum())} places for images, the example names {len(order)}",
                            where=example.origin, do="name each image of `images` in exactly one message, by its index from 0")
        if beyond := [i for i in order if not 0 <= i < len(example.images)]:
            raise DataError(f"a message shows image {beyond[0]}, but the example has {len(example.images)}",
                            where=example.origin, do="count images from 0")
        plain = replace(found, flags={**found.flags, "image": torch.zeros_like(places)})
        if not len(order):
            return plain
        pictures = [self.picture(load(example.images[i], example.origin)) for i in order]
        return _spliced(plain, places.nonzero().flatten().tolist(), pictures, self.token)

    @abstractmethod
    def picture(self, image: Any) -> Picture:
        """Prepare one image (a PIL image in RGB)."""

    def shown(self, pixels: Tensor) -> Tensor | None:
        """[F, S, S, 3] small pictures of normalised frames [F, 3, H, W]."""
        if not self.thumbnail:
            return None
        mean, std = (torch.tensor(getattr(self.processor, name)).view(3, 1, 1) for name in ("image_mean", "image_std"))
        small = interpolate(pixels.float() * std + mean, (self.thumbnail, self.thumbnail), mode="area")
        return (small.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous()


class Frames(Reader):
    """LLaVA: every image is one frame, every patch of it one token."""

    def picture(self, image: Any) -> Picture:
        pixels = self.processor(image, return_tensors="pt")["pixel_values"]
        size = int(self.hf_config.vision_config.patch_size)
        rows, columns = pixels.shape[-2] // size, pixels.shape[-1] // size
        vision, chosen = self.hf_config.vision_config, self.hf_config.vision_feature_select_strategy
        # CLIP has a class token besides; `default` drops the first
        besides = int(vision.model_type == "clip_vision_model") - int(chosen == "default")
        frames = torch.tensor([[1, rows * columns + besides] if besides else [rows, columns]])
        return Picture({"pixel_values": pixels}, [self.token] * int(frames.prod()), frames, self.shown(pixels))


class Tiles(Reader):
    """Idefics3 and SmolVLM: an image is cut into tiles, followed by the whole; groups of patches become one token."""

    def picture(self, image: Any) -> Picture:
        found = self.processor([[image]], return_tensors="pt", return_row_col_info=True)
        pixels = found["pixel_values"][0]
        side = int(self.hf_config.vision_config.image_size) // int(self.hf_config.vision_config.patch_size)
        side //= int(self.hf_config.scale_factor)
        rows, columns = (int(np.asarray(found[name]).reshape(-1)[0]) for name in ("rows", "cols"))
        fake, seen = "<fake_token_around_image>", self.tokenizer.convert_ids_to_tokens(self.token) * side**2
        tiles = "".join("".join(f"{fake}<row_{r + 1}_col_{c + 1}>{seen}" for c in range(columns)) + "\n" for r in range(rows))
        text = f"{tiles}\n" if tiles else ""
        tokens = self.tokenizer.encode(f"{text}{fake}<global-img>{seen}{fake}", add_special_tokens=False)
        frames = torch.tensor([[side, side]] * len(pixels))
        return Picture({"pixel_values": pixels, "pixel_attention_mask": found["pixel_attention_mask"][0]}, tokens, frames,
                       self.shown(pixels))


class Grid(Reader):
    """Qwen: an image of any size is a grid of patches; groups of merge x merge of them become one token."""

    def picture(self, image: Any) -> Picture:
        found = self.processor(image, return_tensors="pt")
        grid = found["image_grid_thw"]
        merge = int(self.hf_config.vision_config.spatial_merge_size)
        frames = torch.tensor([[int(t) * int(h) // merge, int(w) // merge] for t, h, w in grid])
        shown = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        side = (self.thumbnail, self.thumbnail)
        small = (interpolate(shown, side, mode="area") * 255).round().byte().permute(0, 2, 3, 1) if self.thumbnail else None
        return Picture({"pixel_values": found["pixel_values"], "image_grid_thw": grid},
                       [self.token] * int(frames.prod()), frames, small)


READERS: dict[str, type[Reader]] = {"frames": Frames, "tiles": Tiles, "grid": Grid}


def load(source: Any, origin: str | None) -> Any:
    """A PIL image in RGB from a path, a data URI (`data:image/png;base64,...`) or a uint8 array [H, W, 3].

    Raises:
        DataError: it cannot be read.
        UserError: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UserError("images are read with Pillow, which is not installed", do="pip install pillow") from error
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise DataError(f"an image is an array {list(source.shape)} of {source.dtype}", where=origin,
                            do="give [height, width, 3] of uint8")
        return Image.fromarray(source)
    try:
        if isinstance(source, str) and source.startswith(_DATA):
            source = io.BytesIO(base64.b64decode(source.partition("base64,")[2], validate=True))
        with Image.open(source) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, binascii.Error, ValueError) as error:
        told = str(source)[:80] if isinstance(source, str | Path) else "a data URI"
        raise DataError(f"the image '{told}' cannot be read: {error}", where=origin,
                        do="give the path of a PNG or JPEG file, or data:image/png;base64,...") from error


def _spliced(found: TokenSequence, places: Sequence[int], pictures: Sequence[Picture], token: int) -> TokenSequence:
    """The sequence with each placeholder replaced by its picture's tokens."""
    columns: dict[str, list[Tensor]] = {name: [] for name in ("ids", "contents", "offsets", *found.flags)}

    def add(span: slice) -> None:
        columns["ids"].append(found.ids[span])
        columns["contents"].append(found.ids[span])
        if found.offsets is not None:
            columns["offsets"].append(found.offsets[span])
        for name, value in found.flags.items():
            columns[name].append(value[span])

    at = 0
    for place, picture in zip(places, pictures, strict=True):
        add(slice(at, place))
        ids = torch.tensor(picture.tokens, dtype=torch.long)
        image = ids == token
        columns["ids"].append(ids)
        columns["contents"].append(torch.where(image, _digest(picture) + torch.arange(len(ids)), ids))
        if found.offsets is not None:
            columns["offsets"].append(found.offsets[place].expand(len(ids), 2))
        for name in found.flags:
            columns[name].append(image if name == "image" else ~image & (name == "special"))
        at = place + 1
    add(slice(at, len(found)))
    extra = {name: torch.cat([p.inputs[name] for p in pictures]) for name in pictures[0].inputs}
    extra["image_grid"] = torch.cat([p.frames for p in pictures])
    if all(p.shown is not None for p in pictures):
        extra["thumbnails"] = torch.cat([p.shown for p in pictures if p.shown is not None])
    return replace(found, ids=torch.cat(columns["ids"]), flags={name: torch.cat(columns[name]) for name in found.flags},
                   offsets=torch.cat(columns["offsets"]) if found.offsets is not None else None, extra=extra,
                   contents=torch.cat(columns["contents"]))


def _digest(picture: Picture) -> int:
    """A number from 2^40 on (no token id) that is the same for equal images alone."""
    found = hashlib.sha256(b"".join(v.numpy().tobytes() for v in picture.inputs.values())).digest()
    return int.from_bytes(found[:7], "big") + 2**40

