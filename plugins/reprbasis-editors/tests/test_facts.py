"""What `fact` adds to `ridge`: words in the subject's place, the least change that puts an answer ahead, a subject that is found.

Shapes: B prompts, D residual width, V vocabulary.
"""

import json
from dataclasses import replace

import pytest
import torch
from reprbasis_editors.config import RidgeConfig
from reprbasis_editors.local import Ridge
from reprbasis_editors.parts import Part, _least, ahead, alone, hold, peers, place, read_in, targets_of, with_subject

import reprbasis as rb
from reprbasis.cli.main import main
from reprbasis.errors import DataError
from reprbasis.interfaces.editor import EditRequest
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.scorer import ContrastBatch
from reprbasis.interfaces.tokens import Example, TokenBatch, TokenSequence
from reprbasis.sites import Site
from reprbasis.testing.models import tiny_checkpoint, tiny_config


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return rb.create("model", "llama", checkpoint=str(tiny_checkpoint(tmp_path_factory.mktemp("model"), tiny_config("llama"))))


@pytest.fixture(scope="module")
def item(model):
    """Two prompts of which the least likely token shall be said; the subject is tokens 2 and 3."""
    g = torch.Generator().manual_seed(3)
    tokens = TokenBatch.pad([TokenSequence(torch.randint(5, 300, (8,), generator=g), sequence=i) for i in range(2)])
    order = model.forward(tokens, logits="last").logits[:, 0].argsort(-1)
    return ContrastBatch(tokens, None, Targets(order[:, -1:], order[:, :1]), {"subject": torch.tensor([[2, 3]]).expand(2, -1)})


def test_peers_stand_where_the_subject_stands(model, item):
    """Half are the likeliest tokens there, none is the subject, and the rest of the prompt is the same."""
    batch, at = peers(model, item, "subject", 6)
    assert batch.shape == (6, 7)
    assert at.tolist() == [[2]] * 6
    first = item.clean.ids[0]
    for row in batch.ids:
        assert torch.equal(row[:2], first[:2])
        assert torch.equal(row[3:], first[4:])
    said = batch.ids[:, 2].tolist()
    assert len(set(said)) == 6
    assert not {int(i) for i in first[2:4]} & set(said)
    likely = model.forward(item.clean, logits="all").logits[0, 1].topk(5).indices.tolist()
    assert [i for i in likely if i not in first[2:4].tolist()][:3] == said[:3]
    assert peers(model, item, "answer", 4)[1].tolist() == [[6]] * 4
    assert peers(model, replace(item, roles={}), "answer", 4) is None


def test_peers_that_are_held_move_less(model, item):
    """The change that is fitted leaves the keys of peers nearly alone and does as much at the subject."""
    part, at = Part(1, values=True), place(item, "subject")
    run = model.forward(item.clean, capture=part.sites, logits="none")
    key = part.keys_in(model, run, at)[:1, 0].double().T
    batch, where = peers(model, item, "subject", 6)
    others = part.keys(model, batch, where)[:, 0].double().T
    wanted = torch.ones(len(part.weight(model)), 1, dtype=torch.float64)
    moved = {}
    for name, given in {"free": [], "held": [(batch, where), None]}.items():
        known = read_in(model, {part: key}, [], 0)
        hold(model, known, given)
        moment = known[part].moment + known[part].near @ known[part].near.T
        change = Ridge(RidgeConfig(ridge=1e-4)).solve(wanted, key, moment)
        moved[name] = float((change @ others).norm() / (change @ key).norm())
    assert moved["held"] < 0.2 * moved["free"]


def test_the_way_ahead_is_ahead_of_all_and_shorter_than_the_contrast(model, item):
    """At the length that the first order asks for, the last stream says the new answer; the contrast needs a longer way."""
    end, out = Site("resid", model.info.n_layers - 1), model.unembedding()
    run = model.forward(item.clean, capture=[end], stop_at=end, logits="none")
    x = run[end][torch.arange(2), item.clean.last()]
    new = item.targets.wrong[:, 0]

    def needed(way):
        """Smallest length at which the new answer is ahead of every other token, the norm's scale held."""
        scale = (out.norm(x) / x / out.gain).mean(1, keepdim=True)
        slope = (way * out.gain * scale) @ out.weight.T
        logits, rows = out.norm(x) @ out.weight.T, torch.arange(2)
        behind, gain = logits - logits[rows, new][:, None], slope[rows, new][:, None] - slope
        behind[rows, new] = -torch.inf
        assert bool((gain[behind > 0] > 0).all())
        return (behind / gain).amax(1)

    alone = replace(item, targets=Targets(None, item.targets.wrong))
    best, with_answers, contrast = (needed(-way.float()) for way in (
        ahead(model, alone, 1e-3), ahead(model, item, 1e-3), targets_of(model, item)))
    assert bool((best < with_answers).all())
    assert bool((with_answers <= contrast * 1.001).all())


def test_the_least_distance_to_half_spaces():
    """Two walls that meet, and one that binds nothing."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert torch.allclose(_least(rows, torch.tensor([3.0, 4.0, 1.0], dtype=torch.float64)), torch.tensor([3.0, 4.0]).double())
    with pytest.raises(DataError, match="no change"):
        _least(torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64), torch.tensor([1.0, 1.0], dtype=torch.float64))


def test_what_shall_be_said_must_be_known(model, item):
    with pytest.raises(DataError, match="what shall be said"):
        ahead(model, replace(item, targets=Targets(item.targets.answer)), 1.0)


def test_a_subject_that_is_not_marked_is_the_token_that_the_answer_hangs_on(tmp_path):
    """Every token is tried, one forward each, and the same is found."""
    model = rb.create("model", "llama", checkpoint=str(tiny_checkpoint(tmp_path, tiny_config("llama"))))
    batch = TokenBatch.pad([TokenSequence(torch.tensor([7, 40, 90, 150, 210, 33]))])
    plain = ContrastBatch(batch, None, Targets(model.forward(batch, logits="last").logits[:, 0].topk(1).indices))

    def fall(i):
        """Of the answer's log-probability if token i is what the model finds likeliest there besides."""
        before = model.forward(batch).logits[0, i - 1].clone()
        before[batch.ids[0, i]] = -torch.inf
        ids = batch.ids[0].clone()
        ids[i] = before.argmax()
        other = TokenBatch.pad([TokenSequence(ids)])
        now = [model.forward(b, logits="last").logits[0, 0].log_softmax(-1) for b in (batch, other)]
        return float((now[0] - now[1])[plain.targets.answer[0, 0]])

    [[found]] = with_subject(model, plain).roles["subject"].tolist()
    assert found == max(range(1, 6), key=fall)
    marked = replace(plain, roles={"subject": torch.tensor([[1]])})
    assert with_subject(model, marked) is marked


def test_where_the_subject_does_not_lead_the_answer_is_written(model, item):
    """A goal that the first ways do not reach ends at the MLP below the last; the plan tells what was tried."""
    request = EditRequest(alone(item)[:1], [Example(text="The keys to the cabinet are on the table.")])
    plan = rb.create("editor", "fact", budget=50.0, neighbours=None, goal=-30.0, tries=3).edit(model, None, request)
    assert plan.details["reached"] or len(plan.details["fell_short"]) == 3
    assert all({"margin_fitted", "failed"} & set(way) for way in plan.details["fell_short"])
    easy = rb.create("editor", "fact", budget=50.0, neighbours=None, goal=None, strength=1.0).edit(model, None, request)
    assert easy.details["fell_short"] == []
    assert set(easy.details["components"]) <= {f"values.{n}" for n in range(model.info.n_layers)}


def test_several_prompts_are_edits_of_their_own(model, item):
    """Each has its strength, the one before in force; asked again with the plan in force, nothing is left to do."""
    request = EditRequest([item], [Example(text="The keys to the cabinet are on the table.")])
    editor = rb.create("editor", "fact", budget=50.0, neighbours=None, goal=-0.5)
    plan = editor.edit(model, None, request)
    about = plan.details["edits"]
    assert len(about) == 2
    assert all(one["held_already"] or one["strength"] > 0 for one in about)
    one = editor.edit(model, None, EditRequest(alone(item)[:1], request.keep))
    assert about[0]["strength"] == one.details["strength"]
    single = alone(item)[1]
    assert torch.equal(single.clean.ids[0], item.clean.ids[1])
    assert torch.equal(single.roles["subject"], item.roles["subject"][1:])


def test_it_is_what_reprbasis_edit_uses(model, tmp_path, capsys):
    folder = tiny_checkpoint(tmp_path, tiny_config("llama"))
    assert main(["edit", str(folder), "The keys to the -> cabinet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["editor"]["use"] == "reprbasis-editors/fact"
