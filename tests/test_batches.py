"""From a task to batches: layouts, targets, roles, the filter by the model's own answers."""

import itertools

import pytest
import torch

import reprbasis as rb
from reprbasis.errors import DataError
from reprbasis.interfaces.task import ContrastPair, Task
from reprbasis.interfaces.tokens import Example
from reprbasis.runtime.batches import best_of
from reprbasis.testing.toys import toy_model


def pair(model, clean, corrupt, *, key="", answer=(" yes",), wrong=(" no",), roles=None, **meta):
    ids = model.tokenizer.convert_tokens_to_ids
    return ContrastPair(Example(text=clean), None if corrupt is None else Example(text=corrupt), tuple(ids(list(answer))),
                        tuple(ids(list(wrong))), roles or {}, key or clean, meta)


@pytest.fixture
def model():
    return toy_model(planted=(1, 4))


@pytest.fixture
def pairs(model):
    """Six pairs of four words and five of three, interleaved; the first word decides."""
    def make(i):
        tail = " w2 w3 w5" if i % 2 == 0 else " w2 w3"
        return pair(model, f" w{2 * i + 6}{tail}", f" w{2 * i + 7}{tail}", key=f"p{i}", roles={"first": (0,), "end": (2,)},
                    case="long" if i % 2 == 0 else "short")
    return [make(i) for i in range(11)]


class Given(Task):
    """A task of given pairs."""

    def __init__(self, pairs):
        self.given = pairs
        self.asked = []

    def pairs(self, tokenizer, split, seed):
        self.asked.append((tokenizer, split, seed))
        return iter(self.given)


def test_rows_of_a_batch_share_one_layout(model, pairs):
    made = rb.batches(model, pairs, batch=4)
    assert [b.clean.shape for b in made] == [(4, 4), (4, 3), (2, 4), (1, 3)]
    for item in made:
        assert item.corrupt is not None
        assert bool(item.clean.mask.all() & item.corrupt.mask.all())
        assert item.clean.shape == item.corrupt.shape
        assert item.roles.keys() == {"first", "end"}
        assert item.roles["first"].shape == (len(item.clean.ids), 1)
        differs = (item.clean.ids != item.corrupt.ids).nonzero()[:, 1]
        assert torch.equal(differs, item.roles["first"][:, 0])


def test_role_positions_are_part_of_the_layout(model):
    made = rb.batches(model, [pair(model, " w2 w3", " w4 w3", key=str(i), roles={"x": (i % 2,)}) for i in range(4)])
    assert [b.roles["x"].flatten().tolist() for b in made] == [[0, 0], [1, 1]]


def test_every_pair_is_there_once_and_can_be_found(model, pairs):
    made = rb.batches(model, pairs, batch=4)
    index = torch.cat([b.clean.sequences[:, 0] for b in made])
    assert sorted(index.tolist()) == list(range(11)) == list(range(made.n))
    assert made.pairs == tuple(pairs)
    for item in made:
        assert torch.equal(item.clean.sequences, item.corrupt.sequences)
        texts = [made.pairs[i].clean.text for i in item.clean.sequences[:, 0]]
        assert [model.tokenizer.decode(row) for row in item.clean.ids] == texts


def test_answers_are_padded(model):
    rows = [pair(model, " w1", " w2", key="a"), pair(model, " w3", " w4", key="b", answer=(" yes", " w9"), wrong=(" no",))]
    [item] = rb.batches(model, rows)
    yes, no, nine = model.tokenizer.convert_tokens_to_ids([" yes", " no", " w9"])
    assert item.targets.answer.tolist() == [[yes, -1], [yes, nine]]
    assert item.targets.wrong.tolist() == [[no], [no]]
    assert item.targets.reference is None


def test_pairs_without_contrast(model):
    [item] = rb.batches(model, [pair(model, " w1 w2", None, wrong=())])
    assert item.corrupt is None
    assert item.targets.wrong.tolist() == [[-1]]


def test_a_task_is_asked_for_split_and_seed(model, pairs):
    task = Given(pairs)
    made = rb.batches(model, task, split="test", seed=5, n=3)
    assert task.asked == [(model.tokenizer, "test", 5)]
    assert made.n == 3
    assert made.seen == {"all": 3, "long": 2, "short": 1}


def test_n_stops_an_endless_task(model, pairs):
    endless = itertools.cycle(pairs)
    assert rb.batches(model, endless, n=30, batch=7).n == 30


def test_fewer_than_n_is_said(model, pairs, caplog):
    assert rb.batches(model, pairs, n=50).n == 11
    assert "gave 11 of 50 pairs" in caplog.text


@pytest.mark.parametrize("keep", ["choice", "top1"])
def test_filter_keeps_what_the_model_gets_right(model, keep):
    """The planted model says `yes` after an even word and `no` after an odd one; pairs with swapped answers are wrong."""
    weights = torch.zeros_like(model.weights["unembed"])  # nothing else is ever said
    yes, no = model.tokenizer.convert_tokens_to_ids([" yes", " no"])
    weights[yes, [1, 4]], weights[no, [1, 4]] = 1.0, -1.0
    model.weights["unembed"] = weights
    good = [pair(model, f"{start} w{i}", f"{start} w{i + 1}", key=f"{start}{i}", case=case)
            for i in (6, 8, 10) for start, case in ((" w2 w3", "three"), (" w2", "two"))]
    bad = [ContrastPair(p.clean, p.corrupt, p.wrong, p.answer, p.roles, f"{p.key}/swapped", p.meta) for p in good[:4]]
    made = rb.batches(model, [*bad, *good], keep=keep, batch=4)
    assert list(made.pairs) == good
    assert made.seen == {"all": 10, "three": 5, "two": 5}
    assert made.kept == {"all": 6, "three": 3, "two": 3}
    assert made.keep_rate() == 6 / 10
    assert [len(item.clean.ids) for item in made] == [3, 3]


def test_top1_wants_the_most_likely_token(model):
    """An answer may beat the wrong one and still not be the most likely token."""
    row = pair(model, " w2 w6", " w2 w7")
    assert rb.batches(model, [row], keep="choice").n == 1
    model.weights["unembed"][20] = 100 * model.weights["unembed"][model.tokenizer.convert_tokens_to_ids(" yes")]
    assert rb.batches(model, [row], keep="choice").n == 1
    with pytest.raises(DataError, match="none of 1 pairs"):
        rb.batches(model, [row], keep="top1")


def test_best_of_leaves_padding_out():
    logits = torch.tensor([[5.0, 1.0, 2.0], [5.0, 1.0, 2.0]])
    assert best_of(logits, torch.tensor([[1, -1], [1, 2]])).tolist() == [1.0, 2.0]


def test_the_corrupt_side_of_a_pair_that_is_not_mirrored_has_no_right_answer(model):
    """Both sides point to `yes`: kept only if nothing is asked of the corrupted one."""
    both = pair(model, " w2 w4 w6", " w2 w4 w8")
    with pytest.raises(DataError, match="none of 1 pairs"):
        rb.batches(model, [both], keep="choice")
    free = ContrastPair(both.clean, both.corrupt, both.answer, both.wrong, mirrored=False)
    assert rb.batches(model, [free], keep="choice").n == 1


@pytest.mark.parametrize(("change", "message"), [
    ({"corrupt": " w1 w2 w3"}, "2 clean and 3 corrupted tokens"),
    ({"roles": {"subject": (2,)}}, "roles outside them: subject"),
    ({"answer": ()}, "has no answer"),
])
def test_wrong_pairs_are_named(model, change, message):
    with pytest.raises(DataError, match=message) as error:
        rb.batches(model, [pair(model, **({"clean": " w1 w2", "corrupt": " w3 w2", "key": "it"} | change))])
    assert "'it'" in str(error.value)


def test_nothing_to_batch(model):
    with pytest.raises(DataError, match="gave no pairs"):
        rb.batches(model, [])
    with pytest.raises(DataError, match="batches of 0 rows"):
        rb.batches(model, [], batch=0)


def test_a_beginning_token_is_counted_and_flagged(checkpoint):
    """What a tokenizer puts before the text is in the batch and is special; the network's device and padding do not matter."""
    from tokenizers import processors

    model = rb.create("model", "llama", checkpoint=str(checkpoint))
    core = model.tokenizer.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[
        ("<|im_start|>", model.tokenizer.bos_token_id)])
    row = ContrastPair(Example(text="a b"), Example(text="a c"), (5,), (6,), {"last": (3,)})
    [item] = rb.batches(model, [row])
    assert item.clean.shape[1] == 4
    assert item.clean.ids[0, 0] == model.tokenizer.bos_token_id
    assert item.clean.flag("special")[0].tolist() == [True, False, False, False]
    assert item.roles["last"].tolist() == [[3]]
