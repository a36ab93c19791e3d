"""How well a model does a task: measures, controls, groups, and the command."""

import json

import pytest
import torch

import reprbasis as rb
from reprbasis.cli import common
from reprbasis.cli.main import main
from reprbasis.errors import DataError, UserError
from reprbasis.interfaces.task import ContrastPair
from reprbasis.interfaces.tokens import Example
from reprbasis.runtime.trial import BY_CASE, MEASURES, trial
from reprbasis.testing.models import tiny_config
from reprbasis.testing.toys import toy_model


@pytest.fixture
def model():
    """Says `yes` after an even word and `no` after an odd one."""
    made = toy_model(planted=(1, 4))
    weights = torch.zeros_like(made.weights["unembed"])
    yes, no = made.tokenizer.convert_tokens_to_ids([" yes", " no"])
    weights[yes, [1, 4]], weights[no, [1, 4]] = 1.0, -1.0
    made.weights["unembed"] = weights
    return made


def pairs(model, *, right=True, mirrored=True):
    yes, no = model.tokenizer.convert_tokens_to_ids([" yes", " no"])
    for i in range(6, 26, 2):
        for case, one, other, answer, wrong in (("even", i, i + 1, yes, no), ("odd", i + 1, i, no, yes)):
            a, b = (answer, wrong) if right else (wrong, answer)
            yield ContrastPair(Example(text=f" w2 w{one}"), Example(text=f" w2 w{other}"), (a,), (b,), key=f"{i}/{case}",
                               meta={"case": case}, mirrored=mirrored)


def test_a_model_that_does_it(model):
    found = trial(model, pairs(model), n=20)
    value = {name: e.value for name, e in found.overall.items()}
    assert value["choice"] == value["top1"] == value["kept_choice"] == value["kept_top1"] == 1
    assert value["choice_corrupt"] == 0
    assert value["logit_diff"] == pytest.approx(-value["logit_diff_corrupt"])
    assert 0.1 < value["shuffled_choice"] < 0.9
    assert set(value) == set(MEASURES)
    assert {name: set(m) for name, m in found.cases.items()} == {"even": set(BY_CASE), "odd": set(BY_CASE)}


def test_a_model_that_does_the_opposite(model):
    value = {name: e.value for name, e in trial(model, pairs(model, right=False)).overall.items()}
    assert value["choice"] == value["top1"] == value["kept_choice"] == 0
    assert value["logit_diff"] < 0


def test_both_directions_are_one_group(model):
    found = trial(model, pairs(model), n=20).overall["choice"]
    assert (found.n, found.groups) == (20, 10)


def test_examples_show_each_case(model):
    shown = trial(model, pairs(model), examples=2, top=3).examples
    assert [(e.answer, e.wrong, e.correct) for e in shown] == [(" yes", " no", True), (" no", " yes", True)]
    assert [e.top[0][0] for e in shown] == [" yes", " no"]
    assert all(len(e.top) == 3 for e in shown)


def test_pairs_without_a_wrong_answer(model):
    with pytest.raises(DataError, match="nothing to compare"):
        trial(model, [ContrastPair(Example(text=" w1"), None, (4,), ())])


def test_tasks_list(capsys):
    assert main(["tasks", "list", "--json"]) == 0
    assert {"sva", "ioi", "dict-key"} <= {t["name"] for t in json.loads(capsys.readouterr().out)}


def test_try_prints_measures_controls_and_examples(checkpoint, capsys):
    task = "{use: list-index, length: 3}"
    assert main(["tasks", "try", str(checkpoint), task, "-n", "6", "--examples", "2"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in MEASURES)
    assert "95 % interval" in told
    assert ">>> " in told
    assert main(["tasks", "try", str(checkpoint), task, "-n", "6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["overall"]["choice"]["n"] == 6


@pytest.mark.parametrize(("model", "task", "message"), [
    ("CHECKPOINT", "svo", "did you mean 'sva'"), ("CHECKPOINT", "{use: sva, set: complex}", "set"),
    ("./nothing-here", "sva", "no checkpoint at"),
    ("smolm2", "sva", "did you mean 'smollm2-135m-instruct'"), ("{use: lama}", "sva", "there is no model 'lama'"),
])
def test_mistakes_exit_with_2(checkpoint, capsys, model, task, message):
    assert main(["tasks", "try", model.replace("CHECKPOINT", str(checkpoint)), task]) == 2
    assert message in capsys.readouterr().err


def test_the_adapter_is_found_by_the_checkpoint(checkpoint):
    assert common.pick_model(rb.registry(), str(checkpoint)).name.endswith("/llama")
    assert common.pick_model(rb.registry(), str(checkpoint), "llama").config.checkpoint == str(checkpoint)
    with pytest.raises(UserError, match=r"no checkpoint at '\./nothing'"):  # said once, not by every adapter
        common.pick_model(rb.registry(), "./nothing")


def test_an_architecture_that_nothing_runs_is_refused_by_every_adapter(tmp_path):
    config = tiny_config("gpt2")
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no installed adapter runs(.|\n)*llama: .*GPT2LMHeadModel(.|\n)*qwen: "):
        common.pick_model(rb.registry(), str(tmp_path))
