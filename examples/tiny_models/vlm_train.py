"""Train the tiny vision-language model: a LLaVA with a CLIP-like tower and a Llama decoder, on synthetic scenes.

    python examples/tiny_models/vlm_train.py OUT [--seed 0] [--threads 2]

As in LLaVA, the tower is trained first and then left alone: for every patch it says which colours and shapes are seen there (by
a linear probe that is thrown away; the held-out combinations of colour, shape and place are held out here too). Then projector
and decoder are trained on questions, several about each scene (see `Batches`); the loss counts the answers fully and the rest of
the dialogue a little.

Hidden matrices are trained by Muon, everything else by AdamW; rates warm up, then fall along a cosine counted in steps, so
that the result depends on the seed alone (and on the machine's rounding).

Shapes: B examples, T tokens, P patches, L labels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from reprbasis_lvlm.scenes import Question, Scene, scenes
from reprbasis_lvlm.vocabulary import COLOURS, PLACES, SHAPES, SIZE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor

PATCH = 8  # half a cell of the grid, so that no patch holds parts of two objects
TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
            "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
            "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
MEAN, STD = 0.25, 0.25
OTHER_TOKENS = 0.05  # weight of everything but answers
ASKED = 6  # questions about a scene
SINGLES = 0.3  # of the scenes with one object are kept


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE; every word of the questions and answers is one token, anything else is spelled."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    control = ["<|im_start|>", "<|im_end|>", "<image>"]
    words = [*COLOURS, *SHAPES, *" ".join(PLACES).split()]
    text = ["What colour is the", "What shape is the object?", "Where is the", "What is at the", "user\nassistant\nsystem\n",
            *words, *(f"the {w}" for w in words)]
    core.train_from_iterator(text * 10, trainers.BpeTrainer(
        vocab_size=1024, special_tokens=control, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=control[0], eos_token=control[1], pad_token=control[1],
                                   extra_special_tokens={"image_token": control[2]}, chat_template=TEMPLATE)


def processor(tokens: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Images of SIZE x SIZE pixels, neither resized nor cropped."""
    images = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, size={"height": SIZE, "width": SIZE},
                                   image_mean=[MEAN] * 3, image_std=[STD] * 3)
    return LlavaProcessor(images, tokens, patch_size=PATCH, num_additional_image_tokens=1, image_token="<image>",
                          vision_feature_select_strategy="default", chat_template=TEMPLATE)


def network(tokens: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """The untrained model; 1.6 M parameters."""
    vision = CLIPVisionConfig(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
                              image_size=SIZE, patch_size=PATCH, hidden_act="gelu")
    text = LlamaConfig(vocab_size=len(tokens), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
                       num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
                       bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id)
    config = LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=-1,
                         image_token_id=tokens.convert_tokens_to_ids("<image>"), vision_feature_select_strategy="default",
                         image_seq_length=(SIZE // PATCH) ** 2,
                         tie_word_embeddings=True)
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(config)


def examples(seed: int) -> Iterator[tuple[Scene, list[Question]]]:
    """Endless training examples: a scene and at most `ASKED` of the questions about it, in any order.

    Few of the scenes with one object are kept: where there is one object, nothing has to be looked for.
    """
    draw = Random(seed)
    for scene in scenes("train", seed):
        if len(scene.things) > 1 or draw.random() < SINGLES:
            asked = [q for thing in scene.things for q in thing.questions()]
            yield scene, draw.sample(asked, min(ASKED, len(asked)))


class Batches:
    """Turns examples into tensors. Every part of a dialogue is tokenised once and remembered.

    A row is the beginning of a dialogue with the image, followed by all questions with their answers, none of which sees another:
    each is what it would be in a dialogue of its own, and the image is read once for all.
    """

    def __init__(self, tokens: PreTrainedTokenizerFast) -> None:
        self.tokens = tokens
        self.known: dict[str, list[int]] = {}
        self.image = tokens.convert_tokens_to_ids("<image>")

    def ids(self, text: str) -> list[int]:
        """Token ids of a part."""
        if text not in self.known:
            self.known[text] = self.tokens.encode(text, add_special_tokens=False)
        return self.known[text]

    def __call__(self, found: list[tuple[Scene, list[Question]]]) -> tuple[dict[str, Tensor], Tensor]:
        """What the model is given, and the weight [B, T] of each token as a target.

        `pixel_values` [B, 3, SIZE, SIZE], `input_ids` and `position_ids` [B, T], `attention_mask` [B, 1, T, T] (0 or -inf).
        """
        begin = [*self.ids("<|im_start|>user\n"), *[self.image] * (SIZE // PATCH) ** 2]
        rows = []
        for _, asked in found:
            row = [(token, at, 0, 0.0) for at, token in enumerate(begin)]
            for number, question in enumerate(asked, 1):
                ask = self.ids(f"{question.text}<|im_end|>\n<|im_start|>assistant\n")
                say, end = self.ids(question.answer), self.ids("<|im_end|>\n")
                weights = [*[OTHER_TOKENS] * len(ask), *[1.0] * (len(say) + 1), *[OTHER_TOKENS] * (len(end) - 1)]
                weights[0] = 0.0  # what comes before it in the row is another question
                row += [(token, len(begin) + i, number, weight)
                        for i, (token, weight) in enumerate(zip([*ask, *say, *end], weights, strict=True))]
            rows.append(row)
        size, pad = max(map(len, rows)), (self.tokens.pad_token_id, 0, -1, 0.0)
        ids, positions, parts, weight = torch.tensor([row + [pad] * (size - len(row)) for row in rows]).unbind(-1)
        sees = (parts[:, :, None] == parts[:, None]) | (parts[:, None] == 0)
        hidden = torch.zeros(sees.shape).masked_fill(~sees.tril(), -torch.inf)
        return {"pixel_values": pixels([scene for scene, _ in found]), "input_ids": ids.long(), "position_ids": positions.long(),
                "attention_mask": hidden[:, None]}, weight


def pixels(found: list[Scene]) -> Tensor:
    """[B, 3, SIZE, SIZE], normalised as the processor does it."""
    raw = torch.stack([torch.from_numpy(s.image) for s in found]).permute(0, 3, 1, 2).float()
    return (raw / 255 - MEAN) / STD


def seen(found: list[Scene]) -> Tensor:
    """[B, P, L] 1 where at least a third of a patch lies in the box of an object with that colour or shape."""
    side, names = SIZE // PATCH, [*COLOURS, *SHAPES]
    out = torch.zeros(len(found), side, side, len(names))
    edge = torch.arange(side) * PATCH
    for target, scene in zip(out, found, strict=True):
        for thing in scene.things:
            left, top, right, bottom = thing.box
            across, down = ((edge + PATCH).clamp(max=high) - edge.clamp(min=low) for low, high in ((left, right), (top, bottom)))
            covered = down.clamp(min=0)[:, None] * across.clamp(min=0) >= PATCH**2 / 3
            target[covered] = torch.tensor([float(n in (thing.colour, thing.shape)) for n in names])
    return out.flatten(1, 2)


class Optimiser:
    """Muon for hidden matrices, AdamW for the rest, one schedule for both."""

    def __init__(self, named: list[tuple[str, torch.nn.Parameter]], steps: int) -> None:
        hidden = [p for n, p in named if p.ndim == 2 and "embed" not in n and "probe" not in n]
        others = [p for n, p in named if p.ndim != 2 or "embed" in n or "probe" in n]
        self.all = [p for _, p in named]
        self.parts = [torch.optim.Muon(hidden, lr=0.02, weight_decay=0.01), torch.optim.AdamW(others, lr=3e-3, weight_decay=0.0)]
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda i: rate(i, steps)) for o in self.parts]

    def step(self, loss: Tensor) -> None:
        """One step down the gradient."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.all, 1.0)
        for part, schedule in zip(self.parts, self.schedules, strict=True):
            part.step()
            schedule.step()
            part.zero_grad()


def train_tower(model: LlavaForConditionalGeneration, source: Iterator[Scene], steps: int, batch: int,
                digest: hashlib._Hash) -> None:
    """Stage 1: the tower says what is seen in each patch."""
    tower = model.model.vision_tower
    probe = torch.nn.Linear(tower.config.hidden_size, len(COLOURS) + len(SHAPES))
    optimiser = Optimiser([*tower.named_parameters(), *((f"probe.{n}", p) for n, p in probe.named_parameters())], steps)
    for step in range(steps):
        found = list(islice(source, batch))
        images, target = pixels(found), seen(found)
        digest.update(images.numpy().tobytes())
        logits = probe(tower(images).last_hidden_state[:, 1:])
        optimiser.step(F.binary_cross_entropy_with_logits(logits, target))
        if step % 50 == 0 or step == steps - 1:
            right = ((logits > 0) == (target > 0)).all(-1)[target.any(-1)].float().mean()
            print(f"tower {step:5d}  patches with an object right {right:.2f}", flush=True)


def train_answers(model: LlavaForConditionalGeneration, tokens: PreTrainedTokenizerFast,
                  source: Iterator[tuple[Scene, list[Question]]], steps: int, batch: int, digest: hashlib._Hash) -> None:
    """Stage 2: projector and decoder learn to answer."""
    make = Batches(tokens)
    model.train().model.vision_tower.requires_grad_(False)
    optimiser = Optimiser([(n, p) for n, p in model.named_parameters() if p.requires_grad], steps)
    for step in range(steps):
        found = list(islice(source, batch))
        inputs, weight = make(found)
        digest.update(inputs["pixel_values"].numpy().tobytes() + inputs["input_ids"].numpy().tobytes())
        ids, weight = inputs["input_ids"][:, 1:], weight[:, 1:]
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
        optimiser.step((loss * weight).sum() / weight.sum())
        if step % 50 == 0 or step == steps - 1:
            right = logits.argmax(-1) == ids
            told = [float(right[i][weight[i] == 1].float().mean()) for i in range(len(found))]
            by = [[t for t, (scene, _) in zip(told, found, strict=True) if len(scene.things) == n] for n in (1, 2, 3)]
            print(f"answers {step:5d}  answer tokens right, 1 to 3 objects: " + "  ".join(
                f"{sum(x) / len(x):.2f}" if x else "-" for x in by), flush=True)


def data_hash(facts: dict[str, Any]) -> str:
    """The hash that training with these facts (of `recipe.json`) would note, without training."""
    seed, batch, make, digest = facts["seed"], facts["batch"], Batches(tokenizer()), hashlib.sha256()
    source = scenes("train", seed)
    for _ in range(facts["tower_steps"]):
        digest.update(pixels(list(islice(source, 4 * batch))).numpy().tobytes())
    found = examples(seed + 1)
    for _ in range(facts["steps"]):
        inputs, _ = make(list(islice(found, batch)))
        digest.update(inputs["pixel_values"].numpy().tobytes() + inputs["input_ids"].numpy().tobytes())
    return digest.hexdigest()


def save(model: LlavaForConditionalGeneration, tokens: PreTrainedTokenizerFast, out: Path, facts: dict[str, Any]) -> None:
    """Write the checkpoint (bfloat16), the processor and `recipe.json`."""
    model.eval().to(torch.bfloat16).save_pretrained(out)
    processor(tokens).save_pretrained(out)
    tokens.save_pretrained(out)
    (out / "recipe.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    """Both stages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tower-steps", type=int, default=200)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokens = tokenizer()
    model, begun = network(tokens, args.seed).train(), time.perf_counter()
    digest = hashlib.sha256()
    train_tower(model, scenes("train", args.seed), args.tower_steps, 4 * args.batch, digest)
    train_answers(model, tokens, examples(args.seed + 1), args.steps, args.batch, digest)
    save(model, tokens, args.out, {
        "recipe": "examples/tiny_models/vlm_train.py", "seed": args.seed, "tower_steps": args.tower_steps, "steps": args.steps,
        "batch": args.batch, "parameters": sum(p.numel() for p in model.parameters()), "data_sha256": digest.hexdigest(),
        "torch": torch.__version__, "threads": torch.get_num_threads(), "seconds": round(time.perf_counter() - begun)})


def rate(step: int, steps: int, warm: int = 50, low: float = 0.03) -> float:
    """Share of the full learning rate at a step."""
    if step < warm:
        return (step + 1) / warm
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


if __name__ == "__main__":
    main()
