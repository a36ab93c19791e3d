"""See red as blue: the edit of the projector is a closed form with known truths, and the step tells what else changed."""

from itertools import islice

import pytest
import torch
from reprbasis_lvlm.config import LvlmConfig, ProjectorConfig
from reprbasis_lvlm.model import LvlmAdapter
from reprbasis_lvlm.projector import Projector
from reprbasis_lvlm.tiny import checkpoint

import reprbasis as rb
from reprbasis.errors import CapabilityError, DataError
from reprbasis.interfaces.editor import EditRequest
from reprbasis.interfaces.tokens import Example
from reprbasis.sites import Site
from reprbasis.testing import EditorContract, StepContract
from reprbasis.testing.toys import contrast_batches, toy_basis, toy_model

EMBED = Site("embed")
OUT = Site("vision.out")


@pytest.fixture(scope="module")
def model():
    return LvlmAdapter(LvlmConfig())


def asked(model, n=32, **options):
    """Red objects with blue patch images, and objects of other colours to keep."""
    task = rb.create("task", "visual-question", size=400, **{"colours": ("red", "blue"), **options})
    change = [p for p in task.pairs(model.tokenizer, "train", 0) if p.meta["case"] == "red"][:n]
    others = rb.create("task", "visual-question", size=400).pairs(model.tokenizer, "train", 0)
    keep = list(islice((p.clean for p in others if p.meta["case"] != "red"), n))
    return EditRequest(rb.batches(model, change), keep)


class TestProjector(EditorContract):
    name = "projector"

    @pytest.fixture(autouse=True)
    def _model(self, model):
        self.model = model

    def world(self):
        return self.model, toy_basis(self.model), asked(self.model)


class TestStep(StepContract):
    name, config = "see-as", {"editors": ["projector"], "prompts": 12, "keep": 4, "held_out": 12}

    @pytest.fixture(autouse=True)
    def _model(self, model):
        type(self).model = model

    def artifacts(self, model, folder):
        return {**super().artifacts(model, folder), "basis": toy_basis(LvlmAdapter(LvlmConfig()))}


def test_the_projector_gives_what_the_closed_form_says(model):
    """With the edit, an image token is y + A y + a: the change is affine in what was there, and equals deltas of W and b."""
    request = asked(model)
    plan = Projector(ProjectorConfig()).edit(model, None, request)
    weight, bias = (plan.deltas[f"model.multi_modal_projector.linear_2.{n}"].double() for n in ("weight", "bias"))
    kept = model.parameters()["model.multi_modal_projector.linear_2.weight"].detach().double().clone()
    linear = weight @ torch.linalg.pinv(kept)
    item = request.change[0]
    before = model.forward(item.clean, capture=[OUT], logits="none")[OUT].double()
    with plan.applied(model):
        after = model.forward(item.clean, capture=[OUT], logits="none")[OUT].double()
    old_bias = model.parameters()["model.multi_modal_projector.linear_2.bias"].double()
    told = before + (before - old_bias) @ linear.T + bias
    assert torch.allclose(after, told, atol=1e-2 * float(after.abs().max()))


def test_clean_images_are_shown_as_their_patch_images_and_text_is_not_touched(model):
    request = asked(model)
    plan = Projector(ProjectorConfig()).edit(model, None, request)
    item = request.change[0]
    before, patch = (model.forward(s, capture=[EMBED], logits="none")[EMBED] for s in (item.clean, item.corrupt))
    with plan.applied(model):
        after, blue = (model.forward(s, capture=[EMBED], logits="none")[EMBED] for s in (item.clean, item.corrupt))
    image = item.clean.flag("image")
    assert torch.equal(after[~image], before[~image])
    away = (after - patch)[image].norm() / (before - patch)[image].norm()
    assert away < 0.5
    assert (blue - patch)[image].norm() < 0.5 * (before - patch)[image].norm()
    assert plan.details["fitted"] > 0.75


def test_a_weight_on_what_is_kept_lowers_its_change(model):
    light, heavy = (Projector(ProjectorConfig(keep_weight=w)).edit(model, None, asked(model)).details for w in (0.0, 100.0))
    assert heavy["moved_kept"] < 0.3 * light["moved_kept"]
    assert heavy["fitted"] < light["fitted"]


def test_it_needs_images_patches_and_a_model_that_sees(model):
    editor = Projector(ProjectorConfig())
    toy = toy_model()
    with pytest.raises(CapabilityError, match="edits vision-language models"):
        editor.edit(toy, toy_basis(toy), EditRequest(contrast_batches(toy)))
    words = [model.batch([Example(text="What colour is the circle?")])] * 2
    item = asked(model).change[0]
    with pytest.raises(DataError, match="no images"):
        editor.edit(model, None, EditRequest([type(item)(*words, item.targets)]))
    with pytest.raises(DataError, match="no patch image"):
        editor.edit(model, None, EditRequest([type(item)(item.clean, None, item.targets)]))


@pytest.mark.parametrize("family", ["llava", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "idefics3", "smolvlm"])
def test_the_table_names_the_last_map_of_every_family(family, tmp_path):
    """Its output is what stands at the image tokens: doubled weights and biases double it."""
    model = LvlmAdapter(LvlmConfig(checkpoint=str(checkpoint(tmp_path, family))))
    [pair] = rb.create("task", "visual-question", size=1).pairs(model.tokenizer, "train", 0)
    batch = model.batch([pair.clean])
    at = batch.flag("image")
    before = model.forward(batch, capture=[EMBED], logits="none")[EMBED][at]
    with torch.no_grad():
        for name in ("weight", "bias"):
            if (parameter := model.parameters().get(f"{model.kind.projector}.{name}")) is not None:
                parameter.mul_(2)
    assert torch.allclose(model.forward(batch, capture=[EMBED], logits="none")[EMBED][at], 2 * before, atol=1e-5)


def test_red_is_seen_as_blue_and_nothing_else_changes(model):
    """On shapes at places that the edit was not given; another wording; without the image; random changes of the same size."""
    step = rb.create("step", "see-as", editors=["projector"], prompts=48, keep=24, held_out=40)
    context = type("Context", (), {"registry": rb.registry(), "model": model, "seed": 0})()
    found = step.run(context, basis=toy_basis(model))
    value = {(m.name, m.condition): m.value for m in found.measurements}
    assert value["says_target", "projector"] > 0.9
    assert value["says_target, other wording", "projector"] > 0.9
    for name in ("others_kept", "other_questions", "other_questions, others"):
        assert value[name, "projector"] > 0.9, name
    for name in ("others_kept", "other_questions, old name", "other_questions, others"):
        assert value[name, "unchanged"] > 0.9, name
    for condition, name in (("projector", "other_questions, old name"), ("unchanged", "other_questions")):
        assert value[name, condition] < 0.8, "there is no object of that colour to be seen"
    assert value["says_target", "unchanged"] < 0.1
    assert value["says_target", "projector, random"] < 0.3
    assert value["blinded", "projector"] < 0.5
    assert model.standing == ()


@pytest.mark.parametrize("options", [{"target": "red"}, {"thing": "square"}, {"editors": ["projector"] * 2}, {"editors": []}])
def test_requests_without_sense_are_refused(options):
    with pytest.raises((rb.errors.ConfigError, ValueError)):
        rb.create("step", "see-as", **{"editors": ["projector"], **options})
