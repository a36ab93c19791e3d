"""Tiny random checkpoints of every family, with tokenizer and image processor, for tests."""

from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3Config,
    Qwen3VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from reprbasis.testing.models import tiny_checkpoint

VISION_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ PLACEHOLDER }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
VOCAB = 384
CONTROL = {
    "llava": ["<image>"], "qwen": ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"],
    "idefics": ["<image>", "<fake_token_around_image>", "<global-img>", *(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2))],
}
PLACEHOLDER = {"llava": "'<image>\n'", "qwen": "'<|vision_start|><|image_pad|><|vision_end|>'", "idefics": "'<image>'"}
TEXT = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": VOCAB, "max_position_embeddings": 256}


def _qwen(cls, text=None, vision=None, **changes):
    tower = {"depth": 3, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2, **(vision or {})}
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    return cls(text_config={**TEXT, "rope_parameters": rotary, **(text or {})}, vision_config=tower, **changes)


def _idefics(cls, text=None, **changes):
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16,
             "patch_size": 4}
    return cls(vision_config=tower, text_config=LlamaConfig(**{**TEXT, **(text or {})}).to_dict(), scale_factor=2, **changes)


def hf_config(family, **changes):
    """The Transformers config of a tiny model of a family; `changes` go to its text config."""
    if family.startswith("llava"):
        modern = family == "llava-qwen3"  # SigLIP has no class token
        vision = (SiglipVisionConfig if modern else CLIPVisionConfig)(
            hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4)
        text = Qwen3Config(**{**TEXT, **changes}, head_dim=16) if modern else LlamaConfig(**{**TEXT, **changes})
        return LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=-1 if modern else -2,
                           vision_feature_select_strategy="full" if modern else "default",
                           tie_word_embeddings=changes.get("tie_word_embeddings", False))
    tied = {"tie_word_embeddings": changes["tie_word_embeddings"]} if "tie_word_embeddings" in changes else {}
    if family == "qwen2-vl":
        return _qwen(Qwen2VLConfig, changes, {"embed_dim": 24, "hidden_size": 32}, **tied)
    if family == "qwen2.5-vl":
        return _qwen(Qwen2_5_VLConfig, changes, {"hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32,
                                                 "window_size": 32, "fullatt_block_indexes": [1]}, **tied)
    if family == "qwen3-vl":
        return _qwen(Qwen3VLConfig, {"head_dim": 8, **changes},
                     {"hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "deepstack_visual_indexes": [0, 2],
                      "num_position_embeddings": 16}, **tied)
    return _idefics({"idefics3": Idefics3Config, "smolvlm": SmolVLMConfig}[family], changes, **tied)


def image_processor(family):
    """An image processor of the family for very small images, in its Pillow form."""
    if family.startswith("llava"):
        return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    if family.startswith("qwen"):
        return Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, min_pixels=16 * 16, max_pixels=64 * 64)
    cls = {"idefics3": Idefics3ImageProcessorPil, "smolvlm": SmolVLMImageProcessorPil}[family]
    return cls(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=True)


def checkpoint(folder, family, **changes):
    """A directory that `lvlm` loads: random weights, tokenizer with the family's control tokens, image processor."""
    group = family.partition("-")[0].rstrip("23.5") if family.startswith(("llava", "qwen")) else "idefics"
    config = hf_config(family, **changes)
    config.image_token_id = 2 + CONTROL[group].index("<|image_pad|>" if group == "qwen" else "<image>")
    tiny_checkpoint(folder, config, network=AutoModelForImageTextToText, control=CONTROL[group],
                    chat_template=VISION_TEMPLATE.replace("PLACEHOLDER", PLACEHOLDER[group]))
    image_processor(family).save_pretrained(folder)
    return folder
