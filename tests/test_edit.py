"""Wishes in words, edits of checkpoints, and the command `edit`."""

import json

import pytest
import torch
from safetensors.torch import load_file

import reprbasis as rb
from reprbasis.artifacts import edited
from reprbasis.artifacts.edited import BEFORE, FACTS, export_edited, revert_edited
from reprbasis.cli.main import main
from reprbasis.component import Component, ComponentConfig
from reprbasis.config.wishes import Wish, Wishes, read
from reprbasis.discovery import discover
from reprbasis.errors import ArtifactError, CapabilityError, ConfigError, UserError
from reprbasis.hookspecs import hookimpl
from reprbasis.interfaces.editor import Codebook, Editor, EditPlan
from reprbasis.runtime.wishes import asked
from reprbasis.sites import Site
from reprbasis.testing.models import tiny_checkpoint, tiny_config


class PushConfig(ComponentConfig):
    """Options of the toy editor."""

    size: float = 30.0
    """How hard."""


class Push(Editor[PushConfig]):
    """Makes the last MLP write, whatever it reads, from the answer to the wrong answer: crude, but it says the new."""

    def edit(self, model, basis, request):
        name = next(n for n in model.parameters() if "layers.2" in n and "down_proj" in n)
        out = model.unembedding().weight
        target = request.change[0].targets
        direction = out[target.wrong[0, 0]] - out[target.answer[0, 0]]
        reads = torch.ones(model.parameters()[name].shape[1])
        return EditPlan({name: self.config.size * torch.outer(direction, reads)}, {"editor": "push"})


class PushPlugin:
    @staticmethod
    @hookimpl
    def reprbasis_register(register):
        register(Component(kind="editor", name="push", config=PushConfig, factory=f"{__name__}:Push", summary="Toy"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config("llama", tie_word_embeddings=True))


@pytest.fixture(scope="module")
def model(folder):
    return rb.create("model", "llama", checkpoint=str(folder))


@pytest.fixture
def cli(monkeypatch, capsys):
    registry = discover()
    registry.add(PushPlugin)
    monkeypatch.setattr("reprbasis.discovery.default_registry", lambda: registry)

    def call(*argv):
        code = main(["edit", *map(str, argv)])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.mark.parametrize(("line", "wish"), [
    ("the capital of France is now Lyon", ("The capital of France is", "Lyon", None)),
    ("The capital of France is the city of -> Lyon", ("The capital of France is the city of", "Lyon", None)),
    ("forget that the capital of France is Paris.", ("The capital of France is", None, "Paris"))])
def test_one_line_is_understood(line, wish):
    [found] = read(line).wishes
    assert (found.prompt, found.target, found.old) == wish


def test_a_subject_is_forgotten_in_several_prompts_and_measured_in_others():
    found = read("forget marie curie").wishes
    assert [w.subject for w in found] == ["Marie curie", "Marie curie", "Marie curie"]
    assert all(w.subject in w.prompt for w in found)
    assert not {w.prompt for w in found} & set(found[0].paraphrases)
    assert len(found[0].paraphrases) == 2


def test_a_line_without_meaning_says_what_can_be_written():
    with pytest.raises(UserError, match="PROMPT -> TARGET"):
        read("hello there")


def test_a_file_gives_triples_pairs_and_what_to_forget(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("edits:\n"
                    "  - {subject: France, relation: 'The capital of {} is', object: Lyon, neighbours: [Spain],\n"
                    "     paraphrases: ['{} is ruled from']}\n"
                    "  - {prompt: The tower is in, target: Rome}\n  - {forget: The sea is}\nkeep: [a b c]\neditor: push\n")
    found = read(str(path))
    assert [w.prompt for w in found.wishes] == ["The capital of France is", "The tower is in", "The sea is"]
    assert found.wishes[0].paraphrases == ("France is ruled from",)
    assert found.wishes[0].neighbours == ("The capital of Spain is",)
    assert [w.target for w in found.wishes] == ["Lyon", "Rome", None]
    assert (found.keep, found.editor) == (("a b c",), "push")
    assert found.wishes[1].where == f"{path}:4"


@pytest.mark.parametrize(("text", "told"), [
    ("edits: [{prompt: The tower, target: Rome, subject: bridge}]", "subject 'bridge' is not in the prompt"),
    ("edits: [{prompt: The tower}]", "either subject, relation and object"),
    ("edits: [{subject: a, relation: no place, object: b}]", "no place for the subject"),
    ("edits: [{prompt: The tower, target: Rome}, {prompt: The tower, target: Oslo}]", "an earlier edit"),
    ("edits: [{promt: The tower, target: Rome}]", "did you mean 'prompt'"), ("edits: []", "at least 1")])
def test_faults_of_a_file_are_named(tmp_path, text, told):
    path = tmp_path / "e.yaml"
    path.write_text(text)
    with pytest.raises((UserError, ConfigError), match=told) as caught:
        read(str(path))
    assert caught.value.exit_code == 2
    assert "e.yaml" in str(caught.value)


def test_answers_are_what_the_model_says_now(model):
    found = asked(model, [Wish("The keys to the", "cabinet", subject="keys")])
    [item] = [found.request.change[0]]
    top = int(model.forward(item.clean, logits="last").logits[0, 0].argmax())
    assert item.targets.answer[0].tolist() == [top]
    first = model.tokenizer("The keys to the cabinet")["input_ids"][len(model.tokenizer("The keys to the")["input_ids"])]
    assert item.targets.wrong[0].tolist() == [first]
    assert model.tokenizer.decode(item.clean.ids[0, item.roles["subject"][0]]).strip() == "keys"


def test_a_target_of_several_tokens_is_several_prompts(model):
    found = asked(model, [Wish("The keys to the", "zqxj")])
    ids = model.tokenizer("The keys to the zqxj")["input_ids"][len(model.tokenizer("The keys to the")["input_ids"]):]
    assert sum(len(b.clean.ids) for b in found.request.change) == len(ids) > 1


def test_forgetting_asks_for_the_runner_up(model):
    [item] = asked(model, [Wish("The keys to the")]).request.change
    top = model.forward(item.clean, logits="last").logits[0, 0].topk(2).indices.tolist()
    assert [item.targets.answer[0, 0], item.targets.wrong[0, 0]] == top


@pytest.mark.parametrize(("wish", "told"), [
    (Wish("The keys to the", "  "), "is no token"),
    (Wish("The capital of Fra", "nce is", old="nce"), "begin with the same token")])
def test_targets_that_cannot_be_said_are_refused(model, wish, told):
    with pytest.raises(UserError, match=told):
        asked(model, [wish])


def test_a_target_that_is_said_already_is_refused(model, monkeypatch):
    before, whole = (model.tokenizer(t)["input_ids"] for t in ("The keys to the", "The keys to the a"))
    monkeypatch.setattr("reprbasis.runtime.wishes._likeliest", lambda *_: [*whole[len(before):], 7, 8])
    with pytest.raises(UserError, match="already"):
        asked(model, [Wish("The keys to the", "a")])


def plan_for(model):
    name = next(n for n in model.parameters() if "layers.1" in n and "o_proj" in n)
    return EditPlan({name: torch.full_like(model.parameters()[name], 0.25)}, {"editor": "by hand"})


def weights_of(folder):
    return {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}


def test_an_exported_model_is_edited_and_comes_back_bit_for_bit(model, folder, tmp_path):
    plan, prompt = plan_for(model), model.batch([rb.interfaces.tokens.Example(text="The keys to the")])
    before = model.forward(prompt).logits
    out = export_edited(model, [plan], tmp_path / "out")
    assert torch.equal(model.forward(prompt).logits, before)
    with plan.applied(model):
        wanted = model.forward(prompt).logits
    again = rb.create("model", "llama", checkpoint=str(out))
    assert torch.equal(again.forward(prompt).logits, wanted)
    names = revert_edited(out)
    assert names == list(plan.deltas)
    original = weights_of(folder)
    held = weights_of(out)
    assert held.keys() == original.keys()
    assert all(torch.equal(held[k], original[k]) for k in original)
    with pytest.raises(ArtifactError, match="no edited checkpoint"):
        revert_edited(out)


def test_an_interrupted_revert_is_finished_by_another(model, folder, tmp_path, monkeypatch):
    out = export_edited(model, [plan_for(model)], tmp_path / "out")

    def fails(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(edited, "save_file", fails)
        with pytest.raises(KeyboardInterrupt):
            revert_edited(out)
    assert (out / BEFORE).is_file()
    assert not list(out.glob(".*.part"))
    revert_edited(out)
    original, held = weights_of(folder), weights_of(out)
    assert all(torch.equal(held[k], original[k]) for k in original)


def test_what_was_kept_is_verified(model, tmp_path):
    out = export_edited(model, [plan_for(model)], tmp_path / "out")
    (out / BEFORE).write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="missing or damaged"):
        revert_edited(out)
    assert json.loads((out / FACTS).read_text())["plans"] == [{"editor": "by hand"}]


def test_shifts_of_activations_cannot_be_exported(model, tmp_path):
    book = Codebook(Site("resid", 1), torch.zeros(1, 32), torch.tensor([torch.inf]), torch.ones(1, 32))
    with pytest.raises(CapabilityError, match="no checkpoint can hold"):
        export_edited(model, [EditPlan({}, {}, [book])], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_edits_measures_saves_and_reverts(cli, folder, tmp_path):
    code, out, err = cli(folder, "The keys to the -> cabinet", "--editor", "push", "--out", tmp_path / "plan", "--export",
                         tmp_path / "model", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["after"]["fitted"]["logit_diff"] < found["before"]["fitted"]["logit_diff"]
    plan = rb.load(tmp_path / "plan")
    assert plan.details["wishes"][0]["target"] == "cabinet"
    code, out, _ = cli("--revert", tmp_path / "model")
    assert code == 0
    assert "are what they were" in out
    original, held = weights_of(folder), weights_of(tmp_path / "model")
    assert all(torch.equal(held[k], original[k]) for k in original)


def test_the_command_prints_what_was_not_measured(cli, folder):
    code, out, _ = cli(folder, "The keys to the -> cabinet", "--editor", "{use: push, size: 20}")
    assert code == 0
    assert "not measured, because none were given: paraphrases" in out
    assert "fitted prompts" in out


def test_a_conflict_with_an_earlier_plan_is_named(cli, folder, tmp_path):
    cli(folder, "The keys to the -> cabinet", "--editor", "push", "--out", tmp_path / "one")
    code, _, err = cli(folder, "The keys to the -> table", "--editor", "push", "--after", tmp_path / "one")
    assert code == 2
    assert "'cabinet'" in err
    assert str(tmp_path / "one") in err


@pytest.mark.parametrize(("argv", "told"), [
    (("none.yaml", "--editor", "push"), "there is no such file"),
    (("The keys -> cabinet", "--editor", "pusch"), "did you mean 'push'"),
    (("The keys -> cabinet", "--editor", "{use: push, sise: 2}"), "--editor {use: push, sise: 2}: sise: unknown key"),
    (("The keys -> cabinet", "--editor", "push", "--after", "nowhere"), "no saved edit plan"),
    (("The keys -> cabinet", "--editor", "push", "--texts", "1"), "nothing to measure on")])
def test_wrong_input_has_exit_code_2(cli, folder, argv, told):
    code, _, err = cli(folder, *argv)
    assert code == 2
    assert told in err


def test_conflicts_are_found_between_wishes():
    with pytest.raises(UserError, match="anything else"):
        Wishes((Wish("a b", "c"), Wish("a b")))
