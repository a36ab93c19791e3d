"""Small worlds made by hand, in which the right answer is known: a linear model, a tokenizer, dictionaries, batches.

`LinearModel` computes every site by a linear map of the token embeddings (attention is uniform, the MLP has no
nonlinearity, the norms are the identity), so a gradient equals an intervention, and scores have one right value. With
`planted` its weights are diagonal and the two answers `yes` and `no` differ in the planted coordinates alone: they, and
nothing else, carry the task.

Shapes: B batch, T tokens, D width, K latents, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..component import Component, ComponentConfig
from ..discovery import default_registry
from ..errors import DataError, SiteError
from ..hookspecs import hookimpl
from ..interfaces.corpus import Corpus, CorpusContext
from ..interfaces.learner import ActivationStats, Dictionary, DictionaryLearner, Rows, StepInfo
from ..interfaces.metric import Metric, Targets
from ..interfaces.model import (
    AttentionWeights,
    Edit,
    ForwardResult,
    MLPWeights,
    ModelAdapter,
    ModelInfo,
    Replace,
    Sampling,
    Start,
    Unembedding,
)
from ..interfaces.scorer import ContrastBatch, ScoreTable
from ..interfaces.task import ContrastPair, Split, Task
from ..interfaces.tokens import Example, TokenBatch, TokenSequence
from ..registry import Registry
from ..runtime.activations import Activations
from ..runtime.basis import Basis, Normaliser
from ..runtime.fit import fit
from ..runtime.harvest import harvest
from ..sites import Site

ROLES = ("system", "user", "assistant")
PLANTED = (1, 4)
"""Coordinates that carry the task in a planted toy."""
PLANTED_SITES = "resid.*"
"""Sites of a planted toy's basis: each is a bottleneck, so each planted latent is needed at each of them."""

AFFINE = frozenset({"affine-decoder"})


class Encoding(dict[str, Any]):
    """What a tokenizer gives, by key or by attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class WordTokenizer:
    """Every word, with the space before it, is one token. Has the part of the Hugging Face interface that plugins use.

    The vocabulary is open: a word seen for the first time gets the next id, so one tokenizer is consistent with itself.
    Text spells no special token, and `decode` gives the text back.

    Args:
        capacity: ids there are; more words than that are an error.
        words: words that get the first ids, in order.
    """

    def __init__(self, capacity: int = 4096, words: Sequence[str] = ()) -> None:
        self.pieces = ["<|end|>", *(f"<|{role}|>" for role in ROLES)]
        self.all_special_tokens = tuple(self.pieces)
        self.all_special_ids = tuple(range(len(self.pieces)))
        self.pad_token_id = self.eos_token_id = 0
        self.pad_token = self.eos_token = self.pieces[0]
        self.bos_token, self.bos_token_id = None, None
        self.chat_template = "role, content, end"
        self.vocab_size = capacity
        self._ids: dict[str, int] = {}
        for word in words:
            self._id(word)

    def __len__(self) -> int:
        return self.vocab_size

    def _id(self, piece: str) -> int:
        if piece not in self._ids:
            if len(self.pieces) == self.vocab_size:
                raise DataError(f"the toy vocabulary of {self.vocab_size} words is full", do="use a larger capacity")
            self._ids[piece] = len(self.pieces)
            self.pieces.append(piece)
        return self._ids[piece]

    def __call__(self, text: str, *, add_special_tokens: bool = True, return_offsets_mapping: bool = False,
                 return_tensors: str | None = None) -> Encoding:
        """Encode one text."""
        found = list(re.finditer(r" ?\w+| ?[^\w\s]|\s", text))
        ids = [self._id(m.group()) for m in found]
        out = Encoding(input_ids=ids, attention_mask=[1] * len(ids))
        if return_offsets_mapping:
            out["offset_mapping"] = [m.span() for m in found]
        if return_tensors:
            out = Encoding({name: torch.tensor([value]) for name, value in out.items()})
        return out

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        return list(self(text)["input_ids"])

    def decode(self, ids: int | Sequence[int] | Tensor, *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        listed = torch.as_tensor(ids).flatten().tolist()
        return "".join(self.convert_ids_to_tokens(i) for i in listed
                       if not (skip_special_tokens and i in self.all_special_ids))

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """One id, or several, as strings; an id without a word yet gives a placeholder."""
        if isinstance(ids, int):
            return self.pieces[ids] if ids < len(self.pieces) else f"<{ids}>"
        return [self.convert_ids_to_tokens(int(i)) for i in ids]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """One token, or several, as ids."""
        if isinstance(tokens, str):
            return self.pieces.index(tokens) if tokens in self.all_special_tokens else self._id(tokens)
        return [self.convert_tokens_to_ids(t) for t in tokens]


def toy_tokens(example: Example, tokenizer: Any, *, index: int = 0, most: int | None = None) -> TokenSequence:
    """Tokenise an example: text as it stands, a dialogue in the template `role, content, end` of `WordTokenizer`."""
    pieces: list[tuple[list[int], bool, bool]] = []  # ids, template, of the assistant
    if example.text is not None:
        pieces.append((tokenizer.encode(example.text, add_special_tokens=False), False, False))
    for at, message in enumerate(example.messages or ()):
        assistant, last = message.role == "assistant", at == len(example.messages or ()) - 1
        pieces.append(([1 + ROLES.index(message.role)], True, False))
        pieces.append((tokenizer.encode(message.content, add_special_tokens=False), False, assistant))
        if not (last and example.continue_last):
            pieces.append(([0], True, False))
    if example.messages is not None and example.add_prompt:
        pieces.append(([1 + ROLES.index("assistant")], True, False))
    ids = torch.tensor([i for part, _, _ in pieces for i in part], dtype=torch.long)
    if len(ids) == 0:
        raise DataError("the example has no tokens", where=example.origin, do="leave empty examples out")
    flags = {name: torch.tensor([p[at] for p in pieces for _ in p[0]]) for at, name in ((1, "special"), (2, "assistant"))}
    sequence = TokenSequence(ids, flags, index, example.key)
    return sequence if most is None else sequence.cut(most)


class ToyModelConfig(ComponentConfig):
    """Options of the linear model."""

    layers: int = Field(2, ge=1)
    """Blocks."""
    width: int = Field(8, ge=2)
    """Residual width D."""
    vocab: int = Field(64, ge=32)
    """Rows of the unembedding V."""
    planted: tuple[int, ...] = ()
    """Coordinates that carry the difference between `yes` and `no`; none: all weights are dense and random."""
    seed: int = 0
    """Of the weights."""


class LinearModel(ModelAdapter[ToyModelConfig]):
    """A decoder in which every site is linear in the embeddings; weights `embed`, `unembed`, `LAYER.W_V`, ..."""

    provides = frozenset({"gradients", "generate", "chat", "weights"})

    def __init__(self, config: ToyModelConfig) -> None:
        super().__init__(config)
        self.info = self.describe(config)
        words = [" yes", " no", *(f" w{i}" for i in range(config.vocab - 16))]
        self._tokenizer = WordTokenizer(config.vocab, words)
        generator = torch.Generator().manual_seed(config.seed)

        def draw(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator) / math.sqrt(config.width)

        def square() -> Tensor:
            dense = draw(config.width, config.width)
            return (0.5 + dense[0].abs()).diag() if config.planted else dense

        self.weights = {"embed": draw(config.vocab, config.width), "unembed": draw(config.vocab, config.width)}
        for layer in range(config.layers):
            self.weights |= {f"{layer}.{name}": square() for name in ("W_V", "W_O", "W_in", "W_out")}
        if config.planted:
            where = list(config.planted)
            up = 1.0 - 2.0 * (torch.arange(config.vocab) % 2)  # words of even id push towards yes
            self.weights["embed"][:, where] = up[:, None].expand(-1, len(where))
            yes, no = self._tokenizer.convert_tokens_to_ids([" yes", " no"])
            self.weights["unembed"][no] = self.weights["unembed"][yes]
            self.weights["unembed"][yes, where], self.weights["unembed"][no, where] = 1.0, -1.0

    @classmethod
    def describe(cls, config: ToyModelConfig) -> ModelInfo:
        layered = [Site(name, i) for i in range(config.layers) for name in ("attn_out", "mlp_out", "resid")]
        names = [Site("embed"), *layered, Site("final")]
        return ModelInfo("toy", config.layers, config.width, config.vocab, 1, 1, dict.fromkeys(names, config.width),
                         revision=config.model_dump_json(), max_tokens=512)

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        return self.weights["embed"].device

    def tokenize(self, examples: Sequence[Example], *, max_tokens: int | None = None,
                 first: int = 0) -> list[TokenSequence]:
        return [toy_tokens(e, self._tokenizer, index=first + i, most=max_tokens) for i, e in enumerate(examples)]

    def forward(self, batch: TokenBatch, *, capture: Collection[Site] = (), edits: Sequence[Edit] = (),
                grad: bool = False, start: Start | None = None, stop_at: Site | None = None,
                logits: Literal["all", "last", "none"] = "all") -> ForwardResult:
        batch = batch.to(self.device)
        depths = {s: self.info.depth(s) for s in {*capture, *(e.site for e in edits)}}
        first = -1 if start is None else self.info.depth(start.site)
        end = len(self.info.sites) if stop_at is None else self.info.depth(stop_at)
        if out := [str(s) for s, depth in depths.items() if depth < first or depth > end]:
            raise SiteError(f"{', '.join(out)} is not reached by this forward", do="start earlier or stop later")
        if start is not None and start.site.name not in ("embed", "resid"):
            raise SiteError(f"a forward cannot start from '{start.site}'", do="start from embed or resid.L")
        seen: dict[Site, Tensor] = {}
        edits = [*(e for e in self.standing if start is None or e.site != start.site), *edits]

        def visit(site: Site, x: Tensor) -> Tensor:
            for edit in edits:
                x = edit(x, batch) if edit.site == site else x
            if site in capture:
                seen[site] = x
            return x

        with torch.set_grad_enabled(grad):
            x: Tensor = self.weights["embed"][batch.ids] if start is None else start.value
            if grad and not x.requires_grad:
                x = x.detach().requires_grad_()
            x = visit(Site("embed") if start is None else start.site, x)
            mixing = _uniform(batch).to(x.dtype)
            begin = 0 if start is None or start.site.layer is None else start.site.layer + 1
            for layer in range(begin, self.info.n_layers):
                if self.info.depth(Site("attn_out", layer)) > end:
                    break
                w = {name: self.weights[f"{layer}.{name}"] for name in ("W_V", "W_O", "W_in", "W_out")}
                attn = visit(Site("attn_out", layer), mixing @ x @ w["W_V"].T @ w["W_O"].T)
                mlp = visit(Site("mlp_out", layer), (x + attn) @ w["W_in"].T @ w["W_out"].T)
                x = visit(Site("resid", layer), x + attn + mlp)
            if end < self.info.depth(Site("final")):
                return ForwardResult(seen, None, batch)
            x = visit(Site("final"), x)
            if logits == "last":
                x = x[torch.arange(len(x)), batch.last()][:, None]
            out_logits = None if logits == "none" or stop_at is not None else x @ self.weights["unembed"].T
        return ForwardResult(seen, out_logits, batch)

    @torch.no_grad()
    def generate(self, prompts: Sequence[TokenSequence], *, edits: Sequence[Edit] = (),
                 sampling: Sampling | None = None) -> list[TokenSequence]:
        how = sampling or Sampling()
        return [self._continue(p, edits, how) for p in prompts]

    def _continue(self, prompt: TokenSequence, edits: Sequence[Edit], how: Sampling) -> TokenSequence:
        generator = torch.Generator().manual_seed(how.seed * 1_000_003 + prompt.sequence)
        ids = prompt.ids
        for _ in range(how.max_new):
            result = self.forward(TokenBatch.pad([TokenSequence(ids)]), edits=edits, logits="last")
            assert result.logits is not None
            token = _pick(result.logits[0, 0], how, generator)
            ids = torch.cat([ids, torch.tensor([token])])
            if token == self._tokenizer.eos_token_id:
                break
        new = torch.arange(len(ids)) >= len(prompt)
        end = new & (ids == self._tokenizer.eos_token_id)
        flags = {name: torch.cat([v, v.new_zeros(len(ids) - len(v))]) for name, v in prompt.flags.items()}
        none = torch.zeros_like(new)
        flags |= {"generated": new, "special": flags.get("special", none) | end,
                  "assistant": flags.get("assistant", none) | (new & ~end)}
        return TokenSequence(ids, flags, prompt.sequence, prompt.key)

    def attention(self, layer: int) -> AttentionWeights:
        """Uniform attention: queries and keys are zero."""
        value, out = self.weights[f"{layer}.W_V"], self.weights[f"{layer}.W_O"]
        none = torch.zeros_like(value)[None]
        return AttentionWeights(W_Q=none, W_K=none, W_V=value[None], W_O=out[None], norm=_same, scale=1.0,
                                kv_of=torch.zeros(1, dtype=torch.long), rotate=lambda x, positions: x)

    def mlp(self, layer: int) -> MLPWeights:
        up, down = self.weights[f"{layer}.W_in"], self.weights[f"{layer}.W_out"]
        return MLPWeights(W_in=up, W_out=down, activation=_same, norm=_same, function=lambda x: x @ up.T @ down.T)

    def unembedding(self) -> Unembedding:
        return Unembedding(weight=self.weights["unembed"], norm=_same, gain=torch.ones(self.info.d_model))

    def parameters(self) -> Mapping[str, Tensor]:
        return self.weights


def _same(x: Tensor) -> Tensor:
    return x


def _uniform(batch: TokenBatch) -> Tensor:
    """[B, T, T] every token looks evenly at itself and what came before it in its own sequence."""
    same = (batch.segments[:, :, None] == batch.segments[:, None, :]) & batch.mask[:, None, :]
    seen = (same & (batch.positions[:, None, :] <= batch.positions[:, :, None])).float()
    return seen / seen.sum(-1, keepdim=True).clamp_min(1)


def _pick(logits: Tensor, how: Sampling, generator: torch.Generator) -> int:
    if how.temperature == 0:
        return int(logits.argmax())
    p, order = (logits / how.temperature).softmax(-1).sort(descending=True)
    p[(p.cumsum(0) - p) >= how.top_p] = 0  # the first token beyond top_p is kept
    return int(order[torch.multinomial(p, 1, generator=generator)])


class ToyLearnerConfig(ComponentConfig):
    """Options of the toy dictionary."""

    width: int = Field(12, ge=1)
    """Latents K."""
    rectify: bool = True
    """ReLU codes; otherwise the dictionary is linear."""


class ToyDictionary(Dictionary):
    """`z = (x - bias) @ encoder.T`, with a ReLU if `rectify`; `decode(z) = z @ decoder + bias`."""

    def __init__(self, encoder: Tensor, decoder: Tensor, bias: Tensor, *, rectify: bool) -> None:
        super().__init__()
        self.d_dict, self.d_in = encoder.shape
        self.encoder, self.decoder = nn.Parameter(encoder), nn.Parameter(decoder)
        self.bias, self.rectify = nn.Parameter(bias), rectify

    def encode(self, x: Tensor) -> Tensor:
        z = (x - self.bias) @ self.encoder.T
        return torch.relu(z) if self.rectify else z

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.decoder + self.bias

    def directions(self) -> Tensor:
        return self.decoder

    def subset(self, latents: Tensor) -> ToyDictionary:
        return ToyDictionary(self.encoder.detach()[latents], self.decoder.detach()[latents], self.bias.detach(),
                             rectify=self.rectify)


class ToyLearner(DictionaryLearner[ToyLearnerConfig]):
    """A plain autoencoder."""

    def start(self, stats: ActivationStats, generator: torch.Generator) -> ToyDictionary:
        rows = torch.randn(self.config.width, stats.d_in, generator=generator) / stats.d_in**0.5
        return ToyDictionary(rows, rows.clone(), stats.mean.float().clone(), rectify=self.config.rectify)

    def loss(self, dictionary: Dictionary, rows: Rows, step: StepInfo) -> dict[str, Tensor]:
        return {"mse": ((dictionary(rows.x) - rows.x).square().mean(1) * rows.weight).mean()}

    def restore(self, d_in: int, tensors: Mapping[str, Tensor]) -> ToyDictionary:
        encoder, decoder, bias = (tensors[name].clone() for name in ("encoder", "decoder", "bias"))
        return ToyDictionary(encoder, decoder, bias, rectify=self.config.rectify)


class ToyCorpusConfig(ComponentConfig):
    """Options of the toy corpus."""

    examples: int = Field(48, ge=1)
    """How many."""
    words: int = Field(40, ge=1)
    """Different words: w0, w1, ..."""


class ToyCorpus(Corpus[ToyCorpusConfig]):
    """Random words, 6 to 20 in a text."""

    def examples(self, *, seed: int = 0, context: CorpusContext | None = None) -> Iterator[Example]:
        generator = torch.Generator().manual_seed(seed)
        for i in range(self.config.examples):
            length = int(torch.randint(6, 21, (), generator=generator))
            words = torch.randint(self.config.words, (length,), generator=generator).tolist()
            yield Example(text="".join(f" w{w}" for w in words), key=f"toy-{i}")


class ToyTaskConfig(ComponentConfig):
    """Options of the toy task."""

    pairs: int = Field(24, ge=1)
    """Pairs in each split."""
    words: int = Field(6, ge=4)
    """Words of a prompt."""


class ToyTask(Task[ToyTaskConfig]):
    """Prompts of one length whose second word is even in the clean text and odd in the corrupted one (see `planted`); the answer
    is ` yes`, the wrong answer ` no`. Roles: `changed`, `last`. Each split begins with a word of its own.
    """

    def pairs(self, tokenizer: Any, split: Split, seed: int) -> Iterator[ContrastPair]:
        first = ("train", "validation", "test").index(split)
        generator = torch.Generator().manual_seed(3 * seed + first)
        [yes], [no] = tokenizer.encode(" yes"), tokenizer.encode(" no")
        for index in range(self.config.pairs):
            rest = torch.randint(4, 40, (self.config.words - 1,), generator=generator).tolist()
            sides = []
            for odd in (0, 1):  # w0 has an even id
                words = [first, rest[0] - rest[0] % 2 + odd, *rest[1:]]
                sides.append(Example(text="".join(f" w{w}" for w in words), key=f"{split}-{index}"))
            yield ContrastPair(sides[0], sides[1], (yes,), (no,), {"changed": (1,), "last": (self.config.words - 1,)},
                               key=f"{split}-{seed}-{index}")


class _Plugin:
    @hookimpl
    def reprbasis_register(self, register: Any) -> None:
        """Offer the toys under the distribution name `toys`."""
        here = __name__
        register(Component("model", "toy-linear", ToyModelConfig, f"{here}:LinearModel", "A linear model, for tests",
                           provides=LinearModel.provides))
        register(Component("learner", "toy-dictionary", ToyLearnerConfig, f"{here}:ToyLearner",
                           "An autoencoder, for tests", provides={"affine-decoder"}))
        register(Component("corpus", "toy-words", ToyCorpusConfig, f"{here}:ToyCorpus", "Random words, for tests"))
        register(Component("task", "toy-pairs", ToyTaskConfig, f"{here}:ToyTask", "One word decides, for tests",
                           provides={"contrast"}))


def toy_registry() -> Registry:
    """Everything installed, and the toys `toy-linear` (model), `toy-dictionary` (learner), `toy-words` (corpus) and
    `toy-pairs` (task).
    """
    registry = default_registry()
    if not any(r.origin == "toys" for r in registry.components()):
        registry.add(_Plugin(), origin="toys")
    return registry


def toy_model(**options: Any) -> LinearModel:
    """The linear model; see `ToyModelConfig`."""
    model: LinearModel = toy_registry().create("model", "toy-linear", **options)
    return model


def toy_basis(model: ModelAdapter[Any], sites: str | Sequence[str] = "*", *, width: int | None = None,
              identity: bool = False, seed: int = 0) -> Basis:
    """A linear basis that is known: decoder rows are orthonormal and the encoder is its transpose.

    Args:
        model: whose sites.
        sites: selectors.
        width: K at most D; with fewer than D latents the reconstruction error is not zero. None: D, and no error.
        identity: the rows are the first unit vectors, the normaliser is the identity; otherwise both are random.
        seed: of the rows and the normaliser.
    """
    chosen, d = model.info.select(sites), model.info.d_model
    k, generator = width or d, torch.Generator().manual_seed(seed)
    rows = torch.eye(d)[:k] if identity else torch.linalg.qr(torch.randn(d, d, generator=generator)).Q[:k].contiguous()
    shift = torch.zeros(len(chosen), d) if identity else torch.randn(len(chosen), d, generator=generator)
    scale = torch.ones(len(chosen)) if identity else torch.rand(len(chosen), generator=generator) + 0.5
    learner: ToyLearner = toy_registry().create("learner", "toy-dictionary", width=k, rectify=False)
    dictionary = ToyDictionary(rows, rows.clone(), torch.zeros(d), rectify=False)
    return Basis(chosen, Normaliser(shift, scale), dictionary, learner, capabilities=AFFINE)


def toy_activations(model: ModelAdapter[Any], folder: Path | None = None, *, tokens: int = 600, seed: int = 0) -> Activations:
    """Activations of every site on random words (other words for another seed), a sixth of the texts held out."""
    return harvest(model, toy_registry().create("corpus", "toy-words"), tokens=tokens, held_out=1 / 6, row_tokens=32,
                   shard_tokens=128, dtype="float32", seed=seed, folder=folder)


def trained_basis(activations: Activations, *, width: int = 12) -> Basis:
    """A ReLU dictionary trained for a moment, with all that a training leaves behind in `details`."""
    learner = toy_registry().create("learner", "toy-dictionary", width=width)
    return fit(learner, activations, rows=2048, batch=128, lr=1e-2, buffer=1024, capabilities=AFFINE)


class MarginConfig(ComponentConfig):
    """No options."""


class Margin(Metric[MarginConfig]):
    """Logit of the first answer minus logit of the first wrong answer at the last token; linear in the logits."""

    needs = frozenset({"answer", "wrong"})
    answers_only = True

    def __call__(self, result: ForwardResult, batch: TokenBatch, targets: Targets) -> Tensor:
        assert result.logits is not None
        assert targets.answer is not None
        assert targets.wrong is not None
        row = torch.arange(len(result.logits))
        last = result.logits[row, 0 if result.logits.shape[1] == 1 else batch.last()]
        return last[row, targets.answer[:, 0]] - last[row, targets.wrong[:, 0]]


def margin() -> Margin:
    """The metric of the toys."""
    return Margin(MarginConfig())


def contrast_batches(model: ModelAdapter[Any], sizes: Sequence[int] = (4, 3), *, seed: int = 0) -> list[ContrastBatch]:
    """Random texts of 5 to 8 words; in the corrupted ones three words are others. Answer ` yes`, wrong answer ` no`.

    The words that change have even ids in the clean text and odd ids in the corrupted one, which in a planted model
    moves the planted coordinates from 1 to -1.
    """
    generator = torch.Generator().manual_seed(seed)
    yes, no = model.tokenizer.convert_tokens_to_ids([" yes", " no"])
    out = []
    for size in sizes:
        clean, corrupt = [], []
        for index in range(size):
            words = torch.randint(8, 40, (int(torch.randint(5, 9, (), generator=generator)),), generator=generator)
            change = torch.randperm(len(words), generator=generator)[:3]
            words[change] -= words[change] % 2
            other = words.clone()
            other[change] += 1
            clean.append(TokenSequence(words, sequence=index))
            corrupt.append(TokenSequence(other, sequence=index))
        targets = Targets(torch.full((size, 1), yes), torch.full((size, 1), no))
        out.append(ContrastBatch(TokenBatch.pad(clean), TokenBatch.pad(corrupt), targets))
    return out


def interventions(model: ModelAdapter[Any], basis: Basis, batches: Sequence[ContrastBatch], metric: Metric[Any], *,
                  baseline: Literal["corrupt", "zero"] = "corrupt") -> ScoreTable:
    """The truth that scorers approximate: how much the mean clean metric falls when a node takes its baseline.

    One forward per site and node, the slow and safe way. Node K is the reconstruction error. `details["sites"]` is the
    effect of setting all nodes of a site at once.
    """
    totals = {site: torch.zeros(basis.d_dict + 2, dtype=torch.float64) for site in basis.sites}
    count = 0
    for item in batches:
        clean = model.forward(item.clean, capture=basis.sites)
        before = metric(clean, item.clean, item.targets).double()
        count += len(before)
        other = None
        if baseline == "corrupt":
            assert item.corrupt is not None
            other = basis.states(model.forward(item.corrupt, capture=basis.sites))
        for site, (z, error) in basis.states(clean).items():
            base_z, base_error = (torch.zeros_like(z), torch.zeros_like(error)) if other is None else other[site]
            for node in range(basis.d_dict + 2):
                new_z, new_error = z, error
                if node != basis.d_dict:
                    pick = slice(None) if node > basis.d_dict else node
                    new_z = z.clone()
                    new_z[..., pick] = base_z[..., pick]
                if node >= basis.d_dict:
                    new_error = base_error
                edit = Replace(site, basis.decode(site, new_z) + new_error)
                after = metric(model.forward(item.clean, edits=[edit]), item.clean, item.targets)
                totals[site][node] += (before - after.double()).sum()
    nodes = {site: (value[:-1] / count).float() for site, value in totals.items()}
    return ScoreTable(nodes, details={"n": count, "sites": {str(s): float(v[-1]) / count for s, v in totals.items()}})
