"""Which checkpoints are run and which are refused, and what the options change."""

from types import SimpleNamespace

import pytest
from reprbasis_qwen.config import QwenConfig
from reprbasis_qwen.model import QwenAdapter

from reprbasis.errors import UserError
from reprbasis.interfaces.tokens import Example, Message
from reprbasis.kits.hf import architectures
from reprbasis.testing.models import THINKING_CHATML, tiny_checkpoint, tiny_config


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen3_moe"])
def test_mixtures_of_experts_are_refused_before_weights_are_read(kind, tmp_path):
    config = tiny_config(kind)
    config.architectures = [{"qwen2_moe": "Qwen2MoeForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}[kind]]
    config.save_pretrained(tmp_path)
    for meet in (QwenAdapter.describe, QwenAdapter):
        with pytest.raises(UserError, match="MoeForCausalLM: a mixture of experts") as caught:
            meet(QwenConfig(checkpoint=str(tmp_path)))
        assert "Qwen3ForCausalLM" in caught.value.do


def test_another_architecture_is_named(tmp_path):
    config = tiny_config("llama")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="needs an adapter for LlamaForCausalLM"):
        QwenAdapter.describe(QwenConfig(checkpoint=str(tmp_path)))


def test_a_misspelled_name_gives_near_misses():
    with pytest.raises(UserError, match="did you mean 'tiny-qwen3'"):
        QwenAdapter.describe(QwenConfig(checkpoint="tiny-qwen"))


@pytest.mark.parametrize(("checkpoint", "told"), [
    ("smolm2", "did you mean 'smollm2-135m-instruct'"), ("llava", "did you mean 'tiny-llava'"),
    ("smollm2-135m-instruct", "is a checkpoint of the model 'llama'(.|\n)*use: llama"),
    ("gpt5", "known: smollm2-135m-instruct, tiny"),
])
def test_checkpoints_of_other_adapters_are_known(checkpoint, told):
    with pytest.raises(UserError, match=told):
        QwenAdapter(QwenConfig(checkpoint=checkpoint))


def test_headers_without_a_class_go_by_the_model_type():
    """As configs read from GGUF files are."""
    assert architectures(SimpleNamespace(architectures=None, model_type="qwen3")) == ("Qwen3ForCausalLM",)
    assert QwenAdapter.layout_for(SimpleNamespace(architectures=None, model_type="qwen3")).q_norm == "q_norm"
    assert QwenAdapter.layout_for(SimpleNamespace(architectures=None, model_type="qwen2")).q_norm is None


def test_room_for_thinking_is_an_option(tmp_path):
    tiny_checkpoint(tmp_path, tiny_config("qwen3"), chat_template=THINKING_CHATML)
    asked = [Example(messages=(Message("user", "Where?"),), add_prompt=True)]

    def prompt(**options):
        model = QwenAdapter(QwenConfig(checkpoint=str(tmp_path), **options))
        return model.tokenizer.decode(model.tokenize(asked)[0].ids)

    assert prompt(thinking=False) == prompt() + "<think>\n\n</think>\n\n"
    assert prompt(thinking=True) == prompt()
