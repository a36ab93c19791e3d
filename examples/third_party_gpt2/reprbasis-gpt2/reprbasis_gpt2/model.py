"""GPT-2: where it keeps its parts. Its weight matrices are stored transposed (`Conv1D`); the kit shows them the usual way."""

from reprbasis.kits.hf import HFAdapter
from reprbasis.kits.hf_layout import Layout

from .config import Gpt2Config


class Gpt2Adapter(HFAdapter[Gpt2Config]):
    """The models of one family."""

    family = "gpt2"
    architectures = ("GPT2LMHeadModel",)
    layout = Layout(
        embed="transformer.wte", positions="transformer.wpe", blocks="transformer.h", norm="transformer.ln_f", rotary=None,
        attn="attn", attn_write="attn", attn_norm="ln_1", qkv="c_attn", o="c_proj",
        mlp_norm="ln_2", gate=None, up="c_fc", down="c_proj", act="act")
