"""The steps: align, move, transferred."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import reprbasis as rb
from reprbasis.errors import DataError, ShapeError
from reprbasis.interfaces.aligner import Alignment
from reprbasis.pipeline.run import plan
from reprbasis.pipeline.spec import read
from reprbasis.testing import StepContract
from reprbasis.testing.models import tiny_checkpoint, tiny_config

SENTENCES = ["The keys to the cabinet are on the table.", "Mary and John went to the store.", "What is the capital of France?",
             "You are a helpful one.", "def double(number): return number", "Numbers: 0 1 2 3 4 5 6 7 8 9, 10 and 11."]


class RealStep(StepContract):
    """Toy models have no offsets, so these steps are tried on tiny Llamas of two seeds and two widths."""

    @pytest.fixture(autouse=True, scope="class")
    def _models(self, request, _prepare, tmp_path_factory):
        folder = tmp_path_factory.mktemp("models")
        cls = request.cls
        where = tiny_checkpoint(folder / "a", tiny_config("llama"))
        other = tiny_checkpoint(folder / "b", tiny_config("llama", hidden_size=48, num_attention_heads=4), seed=1)
        text = folder / "t.txt"
        text.write_text("\n".join(f"{s} {t}" for s in SENTENCES for t in SENTENCES), encoding="utf-8")
        cls.model = rb.create("model", "llama", checkpoint=str(where))
        cls.config = {**cls.config, "to": {"use": "llama", "checkpoint": str(other)},
                      "corpus": {"use": "text", "path": str(text), "unit": "line"}}
        acts = rb.harvest(cls.model, rb.create("corpus", "text", path=text, unit="line"), sites="resid.1", tokens=400,
                          folder=folder / "acts")
        basis = rb.fit(rb.create("learner", "relu", width=40), acts, rows=2000, batch=100, buffer=1000,
                       capabilities=frozenset({"affine-decoder"}))
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(32, 48, generator=generator)
        alignment = Alignment(matrix, torch.linalg.pinv(matrix), torch.zeros(32), torch.zeros(48),
                              {"site_a": "resid.1", "site_b": "resid.2"})
        cls.world = {**cls.world, "basis": basis, "alignment": alignment}


class TestAlign(RealStep):
    name, config = "align", {"to": "llama", "corpus": "text", "site": "resid.1", "to_site": "resid.2", "aligner": "ridge",
                             "tokens": 500}

    def test_the_alignment_tells_what_it_is(self, tmp_path):
        found = self.run(tmp_path)
        assert found.matrix.shape == (32, 48)
        assert (found.details["site_a"], found.details["site_b"]) == ("resid.1", "resid.2")
        assert found.details["coverage"] == [1.0, 1.0]
        assert {"map", "permuted", "random", "same-frequency"} <= set(found.details["controls"])
        assert found.details["verdict"].startswith(("aligned", "no alignment"))


class TestAlignVocabulary(RealStep):
    name, config = "align", {"to": "llama", "corpus": "text", "site": "final", "aligner": "unembedding", "tokens": 500,
                             "anchors": "vocabulary"}

    def test_shared_tokens_are_counted(self, tmp_path):
        found = self.run(tmp_path)
        assert found.details["shared_tokens"] > 50
        assert found.details["shared_shares"] == [1.0, 1.0]


class TestMove(RealStep):
    name, config = "move", {"to_site": "resid.0"}

    @pytest.fixture(autouse=True, scope="class")
    def _plain(self, request, _models):
        request.cls.config = {"to_site": "resid.0"}

    def test_the_basis_is_one_of_the_other_model(self, tmp_path):
        found = self.run(tmp_path)
        assert [str(s) for s in found.sites] == ["resid.0"]
        assert found.d_in == 48
        assert found.details["moved"]["from"] == "resid.1"

    def test_what_does_not_fit_is_refused(self, tmp_path):
        context = self.context(tmp_path / "scratch")
        silent = replace(self.world["alignment"], details={})
        with pytest.raises(DataError, match="which sites"):
            self.create().run(context, **{**self.inputs(), "alignment": silent})
        with pytest.raises(ShapeError, match="width 48"):
            self.create().run(context, **{**self.inputs(), "alignment": self.world["alignment"].swapped()})


HALVES = {"positive": SENTENCES[:4], "negative": SENTENCES[2:]}


class TestTransferred(RealStep):
    name, config = "transferred", {
        "to": "llama", "corpus": "text", "tokens": 300, "texts": 4,
        "contrasts": [{"name": "one", **HALVES, "toward": [" a"], "away": [" the"]},
                      {"name": "two", "positive": SENTENCES[:4], "negative": SENTENCES[1:5], "toward": [" the"],
                       "away": [" on"]}],
        "tables": [{"use": "prefer", "task": {"use": "ioi"}, "prompts": 4}]}

    def inputs(self, *, optional=True):
        found = super().inputs(optional=optional)
        found.pop("native", None)  # the toy world has a basis of the first model alone
        return found

    def test_every_part_stands_beside_its_controls(self, tmp_path):
        found = self.run(tmp_path)
        conditions = {}
        for m in found.measurements:
            conditions.setdefault(m.name, set()).add(m.condition)
        assert {"native", "mapped", "wrong-feature", "random", "unmapped"} <= conditions["one: ratio"]
        assert {"mapped", "wrong-feature", "random", "unmapped"} <= conditions["dictionary: fvu"]
        assert conditions["table 1: spearman"] == {"mapped", "random", "unmapped"}
        assert found.values["head_similarity"].shape == (12, 12)

    def test_a_corpus_too_small_is_refused(self, tmp_path: Path):
        path = tmp_path / "one.txt"
        path.write_text("one line alone", encoding="utf-8")
        config = {**self.config, "corpus": {"use": "text", "path": str(path), "unit": "line"}}
        step = rb.create("step", "transferred", **config)
        with pytest.raises(DataError, match="fewer than two texts"):
            step.run(self.context(tmp_path / "scratch"), **self.inputs())


def test_other_weights_of_the_second_model_are_another_step(tmp_path):
    """A step that names a further model is not reused when that model's weights change."""
    for name, seed in (("a", 0), ("b", 1)):
        tiny_checkpoint(tmp_path / name, tiny_config("llama"), seed=seed)
    file = tmp_path / "p.yaml"
    file.write_text(f"""reprbasis: 1
name: p
model: {{use: llama, checkpoint: {tmp_path / "a"}}}
steps:
  map: {{do: align, to: {{use: llama, checkpoint: {tmp_path / "b"}}}, corpus: chat, site: resid.1, aligner: ridge}}
""", encoding="utf-8")

    def planned():
        registry = rb.registry()
        return plan(read(file, (), registry), registry, runs=tmp_path / "runs")[0].fingerprint

    before = planned()
    assert planned() == before
    tiny_checkpoint(tmp_path / "b", tiny_config("llama"), seed=2)
    assert planned() != before
