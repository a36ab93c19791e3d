"""The laws of models, proven on a tiny random network of the adapter's own architecture.

Shapes: B batch, T tokens, D residual width, V vocabulary, H query heads, E head width.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import reprbasis
from reprbasis.errors import DataError, SiteError
from reprbasis.interfaces.model import Edit, Replace, Sampling, Start
from reprbasis.interfaces.tokens import Example, Message, TokenBatch
from reprbasis.sites import Site

from ..models import CHATML, tiny_checkpoint, tiny_config
from .base import ComponentContract

TEXTS = ("The keys to the cabinet are", "Mary", "When Mary and John went to the store, John gave a drink to",
         "def double(number):\n    return")


@dataclass(frozen=True)
class Same:
    """An edit that changes nothing."""

    site: Site

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        return x


@dataclass(frozen=True)
class Add:
    """An edit that adds a vector [D] everywhere."""

    site: Site
    vector: Tensor

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        return x + self.vector


@dataclass(frozen=True)
class Watch:
    """An edit that changes nothing and notes which positions it saw, and which of them were generated."""

    site: Site
    seen: list[tuple[int, bool]]

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        pairs = zip(batch.positions[batch.mask].tolist(), batch.flag("generated")[batch.mask].tolist(), strict=True)
        self.seen.extend(pairs)
        return x


@dataclass(frozen=True)
class Fail:
    """An edit that raises."""

    site: Site

    def __call__(self, x: Tensor, batch: TokenBatch) -> Tensor:
        raise RuntimeError("on purpose")


class ModelContract(ComponentContract):
    """Suite of kind `model`: name yours and, if you like, say how the tiny checkpoint is made and with which options it runs.

        class TestLlama(ModelContract):
            name, config = "llama", {"attention": "eager"}

            def hf_config(self):
                return tiny_config("llama", num_key_value_heads=1)

    Attributes:
        chat_template: of the tiny checkpoint's tokenizer.
        thinking: what stands before and after the thoughts of an answer; None for an adapter that does not flag them.
        rtol: largest difference, relative to the largest value, between two ways to compute the same; by dtype if None.
        probed: layer whose sites are edited; one with a layer before and one after it.
    """

    kind = "model"
    rtol: ClassVar[float | None] = None
    probed: ClassVar[int] = 1
    chat_template: ClassVar[str] = CHATML
    thinking: ClassVar[tuple[str, str] | None] = ("<think>", "</think>")
    folder: Path
    model: Any  # the ModelAdapter under test

    def hf_config(self) -> Any:
        """The Transformers config of the tiny network: 3 layers or more, vocabulary 320 or more.

        By default `tiny_config` of the adapter's `family`.
        """
        family = getattr(reprbasis.registry().load(self.kind, self.name), "family", None)
        if family is None:
            raise NotImplementedError(f"{type(self).__name__} does not say which network to test: define hf_config()")
        return tiny_config(family)

    def make_checkpoint(self, folder: Path) -> Path:
        """Write the checkpoint under test; override it if `tiny_checkpoint` does not do for your architecture."""
        return tiny_checkpoint(folder, self.hf_config(), chat_template=self.chat_template)

    def load_reference(self) -> Any:
        """The same network in Transformers' own class, independent of the adapter."""
        from transformers import AutoModelForCausalLM

        dtype = getattr(torch, self.options().get("dtype", "float32"))
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype, attn_implementation="eager").eval()

    @pytest.fixture(autouse=True, scope="class")
    def _prepare(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls: Any = request.cls
        cls.folder = self.make_checkpoint(tmp_path_factory.mktemp("model"))
        cls.model = cls().create()

    def options(self) -> dict[str, Any]:
        return {"checkpoint": str(self.folder), **self.config}

    # -- helpers -------------------------------------------------------------------------------------------------------

    @property
    def tolerance(self) -> float:
        """See `rtol`."""
        by_dtype = {"float64": 1e-6, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
        return self.rtol or by_dtype[self.options().get("dtype", "float32")]

    def site(self, name: str) -> Site:
        """A site of the probed layer."""
        return Site(name, self.probed)

    def close(self, a: Tensor, b: Tensor) -> bool:
        """Whether the two agree within the tolerance."""
        return float((a - b).abs().max()) <= self.tolerance * max(1.0, float(b.abs().max()))

    def batch(self, side: Any = "right") -> TokenBatch:
        """Texts of different lengths, padded."""
        found: TokenBatch = self.model.batch([Example(text=t) for t in TEXTS], side=side)
        return found

    def alone(self, text: str) -> TokenBatch:
        """One text, without padding."""
        found: TokenBatch = self.model.batch([Example(text=text)])
        return found

    # -- capture and edit ----------------------------------------------------------------------------------------------

    def test_capture_changes_nothing(self) -> None:
        """Looking must not disturb. If it fails, a hook returns another tensor, or capturing takes another path."""
        batch = self.batch()
        seen = self.model.forward(batch, capture=self.model.info.sites)
        assert torch.equal(seen.logits, self.model.forward(batch).logits)
        assert {s: x.shape[-1] for s, x in seen.sites.items()} == dict(self.model.info.widths)

    def test_identity_edit_changes_nothing(self) -> None:
        """An edit that returns its input must be free. If it fails, values are cast or recomputed on the way."""
        batch = self.batch()
        edited = self.model.forward(batch, edits=[Same(s) for s in self.model.info.sites])
        assert torch.equal(edited.logits, self.model.forward(batch).logits)

    def test_sites_are_where_they_should_be(self) -> None:
        """`embed`, `resid.L` and the logits equal Transformers' own. If it fails, a site is read off by one layer.

        The last of Transformers' hidden states comes after the final norm, as `final` does; `resid.L` of the last layer
        comes before it.
        """
        batch, info = self.alone(TEXTS[0]), self.model.info
        mine = self.model.forward(batch, capture=info.sites)
        with torch.no_grad():
            theirs = self.load_reference()(batch.ids, output_hidden_states=True)
        expected = [Site("embed"), *(Site("resid", i) for i in range(info.n_layers - 1)), Site("final")]
        for site, value in zip(expected, theirs.hidden_states, strict=True):
            assert self.close(mine[site], value), site
        assert self.close(mine.logits, theirs.logits)

    def test_stream_is_the_sum_of_its_writers(self) -> None:
        """`resid.L = resid.(L-1) + attn_out.L + mlp_out.L`. If it fails, a writer is read before its own post-norm."""
        seen = self.model.forward(self.batch(), capture=self.model.info.sites)
        mask, before = seen.batch.mask, seen["embed"]
        for layer in range(self.model.info.n_layers):
            total = before + seen.sites[Site("attn_out", layer)] + seen.sites[Site("mlp_out", layer)]
            before = seen.sites[Site("resid", layer)]
            assert self.close(total[mask], before[mask]), layer

    @pytest.mark.parametrize("name", ["attn_out", "mlp_out", "resid"])
    def test_edit_acts_downstream_only(self, name: str) -> None:
        """An edit changes its site and what follows, nothing before. If it fails, the hook sits on the wrong module."""
        site, batch, sites = self.site(name), self.batch(), self.model.info.sites
        plain = self.model.forward(batch, capture=sites)
        vector = torch.ones(self.model.info.d_model, dtype=plain[site].dtype)
        edited = self.model.forward(batch, capture=sites, edits=[Add(site, vector)])
        at = sites.index(site)
        assert all(torch.equal(plain[s], edited[s]) for s in sites[:at])
        assert torch.equal(edited[site], plain[site] + vector), "the site must be captured after its edits"
        assert all(not torch.equal(plain[s], edited[s]) for s in sites[at + 1:] if s.name in ("resid", "final"))
        assert not torch.equal(plain.logits, edited.logits)

    def test_edits_apply_in_order(self) -> None:
        """Several edits of one site are applied one after the other. If it fails, only the last is kept."""
        site, batch = self.site("resid"), self.alone(TEXTS[0])
        x = self.model.forward(batch, capture=[site])[site]
        one = torch.ones(x.shape[-1], dtype=x.dtype)
        edits: list[Edit] = [Replace(site, torch.zeros(1, dtype=x.dtype)), Add(site, one), Add(site, one)]
        assert torch.equal(self.model.forward(batch, capture=[site], edits=edits)[site], torch.full_like(x, 2.0))

    @pytest.mark.parametrize("name", ["attn_out", "mlp_out", "resid"])
    def test_nothing_remains_after_a_failure(self, name: str) -> None:
        """No hook outlives its call. If it fails, remove hooks in a `finally`."""
        batch = self.batch()
        with _called() as modules:
            before = self.model.forward(batch).logits
        with pytest.raises(RuntimeError, match="on purpose"):
            self.model.forward(batch, edits=[Fail(self.site(name))])
        assert all(not m._forward_hooks and not m._forward_pre_hooks and not m._backward_hooks for m in modules)
        assert torch.equal(self.model.forward(batch).logits, before)

    # -- stopping and starting -----------------------------------------------------------------------------------------

    def test_nothing_runs_beyond_stop_at(self) -> None:
        """Blocks after `stop_at` cost nothing. If it fails, stop the loop over blocks there, and skip norm and head."""
        counts = []
        for layer in range(self.model.info.n_layers):
            site = Site("resid", layer)
            with _called() as modules:
                result = self.model.forward(self.batch(), capture=[site], stop_at=site)
            assert result.logits is None
            assert torch.equal(result[site], self.model.forward(self.batch(), capture=[site])[site])
            counts.append(len(modules))
        [step] = {b - a for a, b in pairwise(counts)}  # each block calls as many modules
        assert step > 0
        with _called() as modules:
            self.model.forward(self.batch(), logits="none")
        assert len(modules) <= counts[0], "a forward that is asked for nothing ran blocks"

    @pytest.mark.parametrize("name", ["embed", "resid"])
    def test_start_continues_from_a_captured_stream(self, name: str) -> None:
        """Starting from a captured value gives the same logits. If it fails, the wrong block runs first."""
        site = Site("embed") if name == "embed" else self.site("resid")
        full = self.model.forward(self.batch("left"), capture=[site])
        assert torch.equal(self.model.forward(full.batch, start=Start(site, full[site])).logits, full.logits)

    def test_impossible_sites_are_refused(self) -> None:
        """Unknown sites, and sites that a shortened forward never reaches, are errors, not missing values."""
        batch, resid = self.alone(TEXTS[0]), self.site("resid")
        x = self.model.forward(batch, capture=[resid])[resid]
        with pytest.raises(SiteError, match="no site"):
            self.model.forward(batch, capture=[Site("resid", self.model.info.n_layers)])
        with pytest.raises(SiteError, match="beyond"):
            self.model.forward(batch, capture=[Site("final")], stop_at=resid)
        with pytest.raises(SiteError, match="before"):
            self.model.forward(batch, edits=[Same(Site("embed"))], start=Start(resid, x))
        with pytest.raises(SiteError, match="start"):
            self.model.forward(batch, start=Start(self.site("attn_out"), x))

    # -- padding, packing, lengths -------------------------------------------------------------------------------------

    def test_padding_side_does_not_matter(self) -> None:
        """Left padding, right padding and none agree on real tokens. If it fails, positions or the mask are wrong."""
        sites = self.model.info.sites
        left, right = (self.model.forward(self.batch(side), capture=sites) for side in ("left", "right"))
        for site in sites:
            assert self.close(left[site][left.batch.mask], right[site][right.batch.mask]), site
        lasts = [self.model.forward(found.batch, logits="last").logits for found in (left, right)]
        for row, text in enumerate(TEXTS):
            alone = self.model.forward(self.alone(text)).logits[:, -1]
            assert all(self.close(last[row], alone) for last in lasts), text

    def test_packed_sequences_do_not_see_each_other(self) -> None:
        """Several sequences in a row give what each gives alone. If it fails, mask by `segments` and `positions`.

        The control: with the segments made one, the values must differ, otherwise the test could not see the fault.
        """
        sequences = self.model.tokenize([Example(text=t) for t in TEXTS])
        [packed] = TokenBatch.pack(sequences, length=sum(map(len, sequences)), rows=1)
        sites, last = self.model.info.sites, Site("resid", self.model.info.n_layers - 1)
        together = self.model.forward(packed, capture=sites)
        merged = replace(packed, segments=torch.zeros_like(packed.segments))
        control = self.model.forward(merged, capture=[last])[last]
        for index, text in enumerate(TEXTS):
            expected = self.model.forward(self.alone(text), capture=sites)
            for site in sites:
                assert self.close(together[site][packed.segments == index], expected[site][0]), (site, text)
        assert float((control - together[last]).abs().max()) > 1e-2 * float(together[last].abs().max())

    def test_too_long_a_sequence_is_refused(self) -> None:
        """Positions beyond the model's range give nonsense, so they are an error that says the limit."""
        long = self.model.info.max_tokens + 1
        ids = torch.zeros(1, long, dtype=torch.long)
        batch = TokenBatch(ids, ids == 0, torch.arange(long)[None], ids, ids)
        with pytest.raises(DataError, match=str(self.model.info.max_tokens)):
            self.model.forward(batch, logits="none")

    # -- gradients -----------------------------------------------------------------------------------------------------

    def test_grad_true_differentiates(self) -> None:
        """With `grad=True` the logits can be differentiated by every site. If it fails, a value is detached."""
        sites = self.model.info.sites
        result = self.model.forward(self.alone(TEXTS[0]), capture=sites, grad=True)
        gradients = torch.autograd.grad(result.logits[0, -1, 3], [result[s] for s in sites])
        assert all(bool(g.isfinite().all()) and float(g.abs().max()) > 0 for g in gradients)

    def test_grad_false_has_no_graph(self) -> None:
        """Without `grad` nothing is recorded, and the values can be used in a graph later."""
        site = self.site("resid")
        x = self.model.forward(self.batch(), capture=[site])[site]
        assert not x.requires_grad
        scale = torch.ones((), dtype=x.dtype, requires_grad=True)
        assert torch.autograd.grad((x * scale).sum(), scale)[0].isfinite()

    def test_gradient_is_that_of_the_function(self) -> None:
        """The gradient by a site predicts the effect of a small edit there. If it fails, an edit leaves the graph."""
        if self.options().get("dtype", "float32") in ("bfloat16", "float16"):
            pytest.skip("finite differences need float32 or more")
        site, batch = self.site("mlp_out"), self.alone(TEXTS[0])
        result = self.model.forward(batch, capture=[site], grad=True)
        [gradient] = torch.autograd.grad(result.logits[0, -1, 3], [result[site]])
        vector = 1e-2 * torch.nn.functional.normalize(gradient.sum(dim=(0, 1)), dim=0)
        up, down = (self.model.forward(batch, edits=[Add(site, s * vector)]).logits[0, -1, 3] for s in (1, -1))
        assert float((up - down) / 2) == pytest.approx(float((gradient * vector).sum()), rel=2e-2)

    # -- facts and weights ---------------------------------------------------------------------------------------------

    def test_describe_equals_reality(self, tmp_path: Path) -> None:
        """`describe` says what the loaded model is, from its config alone. If it fails, it guesses or reads weights."""
        cls, config = type(self.model), self.make_config()
        assert cls.describe(config) == self.model.info
        bare = shutil.copytree(self.folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
        described = cls.describe(self.make_config(checkpoint=str(bare)))
        assert replace(described, revision=None) == replace(self.model.info, revision=None)
        assert described.revision != self.model.info.revision

    def test_attention_weights_compute_the_attention(self) -> None:
        """`attention(L)` explains `attn_out.L` in full. If it fails: head order, GQA map, rotation, norms or biases."""
        layer, batch = self.probed, self.alone(TEXTS[2])
        seen = self.model.forward(batch, capture=self.model.info.sites)
        w = self.model.attention(layer)
        x = w.norm(seen.sites[Site("resid", layer - 1)])
        q, k, v = (_project(x, weight, bias) for weight, bias in ((w.W_Q, w.b_Q), (w.W_K, w.b_K), (w.W_V, w.b_V)))
        q, k = (q if w.q_norm is None else w.q_norm(q)), (k if w.k_norm is None else w.k_norm(k))
        q, k = w.rotate(q, batch.positions[:, None]), w.rotate(k, batch.positions[:, None])
        scores = w.scale * q @ k[:, w.kv_of].transpose(-1, -2)
        gap = batch.positions[0, :, None] - batch.positions[0, None, :]
        unseen = (gap < 0) if w.window is None else (gap < 0) | (gap >= w.window)
        z = scores.masked_fill(unseen, -torch.inf).softmax(-1) @ v[:, w.kv_of]
        out = torch.einsum("bhte,hde->btd", z, w.W_O) + (0 if w.b_O is None else w.b_O)
        assert self.close(out, seen.sites[Site("attn_out", layer)])

    def test_mlp_weights_compute_the_mlp(self) -> None:
        """`mlp(L)` explains `mlp_out.L`, as a function and by its weights. If it fails: gate and up are swapped."""
        layer = self.probed
        seen = self.model.forward(self.alone(TEXTS[2]), capture=self.model.info.sites)
        w = self.model.mlp(layer)
        x = w.norm(seen.sites[Site("resid", layer - 1)] + seen.sites[Site("attn_out", layer)])
        expected = seen.sites[Site("mlp_out", layer)]
        assert self.close(w.function(x), expected)
        hidden = nn.functional.linear(x, w.W_in, w.b_in)
        gate = None if w.W_gate is None else nn.functional.linear(x, w.W_gate, w.b_gate)
        hidden = w.activation(hidden) if gate is None else w.activation(gate) * hidden
        assert self.close(nn.functional.linear(hidden, w.W_out, w.b_out), expected)

    def test_unembedding_computes_the_logits(self) -> None:
        """`unembedding()` explains the logits. If it fails, the final norm or the output matrix is another one."""
        site = Site("resid", self.model.info.n_layers - 1)
        seen = self.model.forward(self.alone(TEXTS[2]), capture=[site])
        out = self.model.unembedding()
        assert out.weight.shape == (self.model.info.vocab, self.model.info.d_model)
        assert out.gain.shape == (self.model.info.d_model,)
        assert self.close(nn.functional.linear(out.norm(seen[site]), out.weight, out.bias), seen.logits)

    def test_weights_are_views(self) -> None:
        """Weights are shown, not copied: an editor that changes a parameter changes the model, and can take it back."""
        parameters = self.model.parameters()
        stored = {p.untyped_storage().data_ptr() for p in parameters.values()}
        attention, mlp = self.model.attention(self.probed), self.model.mlp(self.probed)
        shown = [attention.W_Q, attention.W_K, attention.W_V, attention.W_O, attention.b_Q, attention.b_K, attention.b_V,
                 attention.b_O, mlp.W_in, mlp.W_gate, mlp.W_out, mlp.b_in, mlp.b_gate, mlp.b_out, self.model.unembedding().weight]
        assert all(w.untyped_storage().data_ptr() in stored for w in shown if w is not None)
        batch = self.alone(TEXTS[0])
        before = self.model.forward(batch).logits
        kept = attention.W_V.detach().clone()
        try:
            with torch.no_grad():
                attention.W_V.mul_(2)
            assert not torch.equal(self.model.forward(batch).logits, before)
        finally:
            with torch.no_grad():
                attention.W_V.copy_(kept)
        assert torch.equal(self.model.forward(batch).logits, before)

    def test_weights_have_the_dtype_asked_for(self) -> None:
        """No weight is kept in another number format than `dtype` says. If it fails, loading casts some of them."""
        asked = getattr(torch, self.options().get("dtype", "float32"))
        assert {p.dtype for p in self.model.parameters().values() if p.is_floating_point()} == {asked}

    # -- tokens --------------------------------------------------------------------------------------------------------

    def test_special_tokens_go_by_position(self) -> None:
        """What is not `special` spells the contents, even if they quote control tokens. If it fails, flags go by id."""
        control = "".join(self.model.tokenizer.all_special_tokens)
        said = [f"Say {control} to me", "Fine."]
        [found] = self.model.tokenize([Example(messages=(Message("user", said[0]), Message("assistant", said[1])))])
        decode = self.model.tokenizer.decode
        assert decode(found.ids[~found.flags["special"]]) == "".join(said)
        assert decode(found.ids[found.flags["assistant"]]) == said[1]
        assert bool(found.flags["special"][-1])
        assert not bool((found.flags["special"] & found.flags["assistant"]).any())
        [plain] = self.model.tokenize([Example(text="user assistant")])
        assert decode(plain.ids[~plain.flags["special"]]) == "user assistant"

    def test_thinking_is_flagged(self) -> None:
        """`thinking` is what an assistant thinks before it answers, without the markers around it.

        Markers in other turns mean nothing. If it fails, flags go by token id, or the markers count as content.
        """
        if self.thinking is None:
            pytest.skip("this adapter flags no thinking")
        begin, end = self.thinking
        asked = Message("user", f"Say {begin} no {end}")
        turns = (asked, Message("assistant", f"{begin}\nIt is Paris, is it?\n{end}\n\nParis."))
        [found] = self.model.tokenize([Example(messages=turns)])
        decode, flags = self.model.tokenizer.decode, found.flags
        assert decode(found.ids[flags["thinking"]]) == "It is Paris, is it?"
        assert decode(found.ids[flags["assistant"] & ~flags["thinking"]]) == "Paris."
        assert decode(found.ids[~flags["special"] & ~flags["assistant"]]) == asked.content
        assert not bool((flags["thinking"] & ~flags["assistant"]).any())

    def test_open_turns_continue(self) -> None:
        """`add_prompt` and `continue_last` give prefixes of the whole dialogue. If it fails, a turn is closed early."""
        user, answer = Message("user", "What is this?"), Message("assistant", "A store and a table.")
        part = Message("assistant", "A store")
        whole, asked, begun = (f.ids.tolist() for f in self.model.tokenize([
            Example(messages=(user, answer)), Example(messages=(user,), add_prompt=True),
            Example(messages=(user, part), continue_last=True)]))
        assert whole[:len(asked)] == asked
        assert whole[:len(begun)] == begun
        assert len(begun) > len(asked)

    def test_offsets_point_into_the_text(self) -> None:
        """`offsets` give each token's characters. If it fails, the text was changed before it was tokenised."""
        [found] = self.model.tokenize([Example(text=TEXTS[2])])
        assert found.offsets is not None
        words = [TEXTS[2][a:b] for a, b in found.offsets.tolist() if a >= 0]
        assert "".join("".join(words).split()) == "".join(TEXTS[2].split())

    def test_tokenizing_numbers_and_cuts(self) -> None:
        """Sequences are numbered from `first`, keep their key, and are cut on the right at `max_tokens`."""
        examples = [Example(text=t, key=f"k{i}") for i, t in enumerate(TEXTS)]
        found = self.model.tokenize(examples, max_tokens=3, first=7)
        assert [(f.sequence, f.key) for f in found] == [(7 + i, f"k{i}") for i in range(len(TEXTS))]
        assert all(len(f) <= 3 and all(len(v) == len(f) for v in f.flags.values()) for f in found)
        with pytest.raises(DataError):
            self.model.tokenize([Example(messages=())])

    # -- generation ----------------------------------------------------------------------------------------------------

    def test_greedy_generation_takes_the_most_likely_token(self) -> None:
        """Every token generated is the best by Transformers' own uncached logits. If it fails: cache, positions."""
        prompts, reference = self.model.tokenize([Example(text=t) for t in TEXTS]), self.load_reference()
        for prompt, whole in zip(prompts, self.model.generate(prompts, sampling=Sampling(max_new=8)), strict=True):
            assert torch.equal(whole.ids[:len(prompt)], prompt.ids)
            assert 0 < len(whole) - len(prompt) <= 8
            assert whole.flags["generated"].tolist() == [i >= len(prompt) for i in range(len(whole))]
            with torch.no_grad():
                logits = reference(whole.ids[None]).logits[0, len(prompt) - 1:-1].float()
            chosen = logits.gather(1, whole.ids[len(prompt):, None])[:, 0]
            assert self.close(chosen, logits.amax(1))

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_batch_mates_do_not_matter(self, temperature: float) -> None:
        """A prompt is continued alike alone and in a batch. If it fails: padding is seen, or draws are shared."""
        if self.options().get("dtype", "float32") in ("bfloat16", "float16"):
            pytest.skip("in half precision the shape of the batch moves the logits enough to turn a choice")
        prompts = self.model.tokenize([Example(text=t) for t in TEXTS])
        sampling = Sampling(max_new=12, temperature=temperature, seed=3)
        together = self.model.generate(prompts, sampling=sampling)
        for prompt, whole in zip(prompts, together, strict=True):
            assert torch.equal(self.model.generate([prompt], sampling=sampling)[0].ids, whole.ids)

    def test_sampling_follows_its_seed(self) -> None:
        """The same seed draws the same; another seed, or another sequence, otherwise; a tiny `top_p` is greedy."""
        prompts = self.model.tokenize([Example(text=TEXTS[0])] * 4)

        def draw(**how: Any) -> list[list[int]]:
            return [f.ids.tolist() for f in self.model.generate(prompts, sampling=Sampling(max_new=12, **how))]

        assert draw(temperature=2.0, seed=1) == draw(temperature=2.0, seed=1) != draw(temperature=2.0, seed=2)
        assert draw(temperature=2.0, top_p=1e-6) == draw()
        drawn = draw(temperature=2.0, seed=1)
        assert len({tuple(ids) for ids in drawn}) > 1, "equal prompts of different sequences must draw for themselves"

    @pytest.mark.parametrize("name", ["attn_out", "mlp_out", "resid", "final"])
    def test_edits_apply_while_generating(self, name: str) -> None:
        """Edits act on the prompt and on every new token: greedy choices are those of the edited forward."""
        site = Site("final") if name == "final" else self.site(name)
        direction = torch.randn(self.model.info.d_model, generator=torch.Generator().manual_seed(0))
        edit = Add(site, direction.to(self.model.unembedding().weight.dtype))
        prompts = self.model.tokenize([Example(text=t) for t in TEXTS])
        for prompt, whole in zip(prompts, self.model.generate(prompts, edits=[edit], sampling=Sampling(max_new=4)),
                                 strict=True):
            batch, new = TokenBatch.pad([whole]), slice(len(prompt) - 1, -1)
            logits = self.model.forward(batch, edits=[edit]).logits[0, new].float()
            assert self.close(logits.gather(1, whole.ids[len(prompt):, None])[:, 0], logits.amax(1))
            assert not self.close(logits, self.model.forward(batch).logits[0, new].float())

    def test_edits_know_what_is_generated(self) -> None:
        """During generation an edit sees every position once, new ones flagged `generated`. If it fails: set the flag."""
        [prompt] = self.model.tokenize([Example(text=TEXTS[0])])
        watch = Watch(self.site("resid"), [])
        [whole] = self.model.generate([prompt], edits=[watch], sampling=Sampling(max_new=4))
        assert watch.seen == [(i, i >= len(prompt)) for i in range(len(whole) - 1)], "the last token is never run"

    def test_generation_stops_at_the_end_of_turn(self) -> None:
        """The token that ends a turn ends the continuation, is kept, and is template. If it fails: stop ids lack it."""
        [turn] = self.model.tokenize([Example(messages=(Message("user", "Hi"), Message("assistant", "Hi")))])
        end = int(turn.ids[int(turn.flags["assistant"].nonzero()[-1]) + 1])
        final = self.model.unembedding().weight[end]
        push = Add(Site("final"), 1e3 * final / final.norm())
        prompts = self.model.tokenize([Example(text=t) for t in TEXTS])
        for prompt, whole in zip(prompts, self.model.generate(prompts, edits=[push]), strict=True):
            assert whole.ids[len(prompt):].tolist() == [end]
            assert bool(whole.flags["special"][-1])
            assert not bool(whole.flags["assistant"][-1])

    def test_capabilities_are_declared(self) -> None:
        """The declaration names what these laws prove: gradients, generate, chat and weights."""
        found = reprbasis.registry().component(self.kind, self.name).component.provides
        assert {"gradients", "generate", "chat", "weights"} <= set(found)


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, T, D] by [H, E, D] -> [B, H, T, E]."""
    out = torch.einsum("btd,hed->bhte", x, weight)
    return out if bias is None else out + bias[:, None]


@contextmanager
def _called() -> Iterator[set[nn.Module]]:
    """The modules whose forward runs inside the `with` block."""
    found: set[nn.Module] = set()
    handle = register_module_forward_hook(lambda module, args, out: found.add(module))
    try:
        yield found
    finally:
        handle.remove()
