"""What a model thinks before it answers is flagged: in dialogues under two kinds of template, and while it generates."""

from itertools import count

import pytest
import torch

from reprbasis.errors import DataError
from reprbasis.interfaces.model import Sampling
from reprbasis.interfaces.tokens import Example, Message
from reprbasis.kits.hf_generate import generate
from reprbasis.kits.hf_tokens import Encoder
from reprbasis.runtime.generate import complete
from reprbasis.testing.models import CHATML, THINKING_CHATML, tiny_tokenizer

MARKS = ("<think>", "</think>")
ASKED = (Message("user", "Where?"), Message("assistant", "<think>\nNear, or far.\n</think>\n\nHere."),
         Message("user", "And now?"))


@pytest.fixture(scope="module", params=[CHATML, THINKING_CHATML], ids=["passes-through", "knows-thinking"])
def tokenizer(request, tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"), chat_template=request.param)


def parts(tokenizer, example, **options):
    """(thought, said without thinking, by users), as flagged."""
    found = Encoder(tokenizer, thinking=MARKS, **options).encode(example, sequence=0, max_tokens=None)
    special, assistant, thinking = (found.flags[name] for name in ("special", "assistant", "thinking"))
    return tuple(tokenizer.decode(found.ids[where]) for where in (thinking, assistant & ~thinking, ~special & ~assistant))


def test_earlier_thoughts_are_shown_or_left_out_as_the_template_has_it(tokenizer):
    last = Message("assistant", "<think>It moved.</think>There.")
    thought, said, users = parts(tokenizer, Example(messages=(*ASKED, last)))
    kept = tokenizer.chat_template == CHATML
    assert thought == "Near, or far." * kept + "It moved."
    assert (said, users) == ("Here.There.", "Where?And now?")


@pytest.mark.parametrize(("content", "thought", "said"), [
    ("<think>\n\n</think>\n\nThere.", "", "There."),
    ("There.", "", "There."),
    ("There, </think> or <think> here.", "", None),
    ("<think>\nIt moved, {so}\n</think>\n\n", "It moved, {so}", ""),
])
def test_forms_of_an_answer(tokenizer, content, thought, said):
    example = Example(messages=(ASKED[0], Message("assistant", content)))
    if said is None and tokenizer.chat_template == THINKING_CHATML:  # it cuts the message at the stray marker
        with pytest.raises(DataError, match="depends on what a message says"):
            parts(tokenizer, example)
    else:
        assert parts(tokenizer, example) == (thought, content if said is None else said, "Where?")


def test_thinking_goes_on_in_an_open_turn(tokenizer):
    begun = Example(messages=(ASKED[0], Message("assistant", "<think>\nIt moved to")), continue_last=True)
    assert parts(tokenizer, begun) == ("It moved to", "", "Where?")


def test_a_tokenizer_without_the_markers_flags_nothing(tokenizer):
    encoder = Encoder(tokenizer, thinking=("<reason>", "</reason>"))
    assert encoder.marks is None
    assert "thinking" not in encoder.encode(Example(messages=ASKED), sequence=0, max_tokens=None).flags


def test_variables_reach_the_template(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path, chat_template=THINKING_CHATML)
    example = Example(messages=ASKED[:1], add_prompt=True)
    plain, closed = (Encoder(tokenizer, thinking=MARKS, template=t).encode(example, sequence=0, max_tokens=None)
                     for t in ({}, {"enable_thinking": False}))
    assert tokenizer.decode(closed.ids[len(plain):]) == "<think>\n\n</think>\n\n"
    assert bool(closed.flags["special"][len(plain):].all())


class Tape:
    """A model that writes given tokens, and notes which of its input tokens were flagged as thinking."""

    def __init__(self, tokens, vocab):
        self.tokens, self.vocab, self.at, self.seen = tokens, vocab, count(), []

    def __call__(self, batch, past):
        self.seen.append(bool(batch.flag("thinking")[0, -1]))
        return torch.nn.functional.one_hot(torch.tensor([self.tokens[next(self.at)]]), self.vocab).float()


@pytest.mark.parametrize("opened", [False, True], ids=["model-opens", "template-opens"])
def test_generated_thoughts_are_flagged_as_they_come(tokenizer, opened):
    encoder = Encoder(tokenizer, thinking=MARKS)
    written = "It moved.</think>There." if opened else "<think>It moved.</think>There."
    tokens = [*tokenizer.encode(written), tokenizer.eos_token_id]
    prompt = encoder.encode(Example(messages=ASKED[:1], add_prompt=True), sequence=0, max_tokens=None)
    if opened:
        ids = torch.cat([prompt.ids, torch.tensor([encoder.marks[0]])])
        prompt = type(prompt)(ids, {name: torch.cat([v, torch.tensor([name == "special"])]) for name, v in prompt.flags.items()})
    tape = Tape(tokens, len(tokenizer))
    [whole] = generate(tape, None, [prompt], Sampling(max_new=99), stop={tokenizer.eos_token_id}, max_tokens=999, pad_id=0,
                       device=torch.device("cpu"), thinking=encoder.marks)
    new = slice(len(prompt), None)
    assert tokenizer.decode(whole.ids[whole.flags["thinking"]]) == "It moved."
    assert tape.seen[1:] == whole.flags["thinking"][new][:-1].tolist(), "edits see the flag of the token just written"
    assert tokenizer.decode(whole.ids[new][whole.flags["assistant"][new]]) == written


class Writer:
    """Writes given tokens under a template whose prompt already opens the thinking."""

    full_name, config, provides, thinking = "test/writer", "writer", frozenset({"generate"}), MARKS

    def __init__(self, folder, written):
        opened = THINKING_CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}")
        assert opened != THINKING_CHATML
        self.tokenizer, self.written = tiny_tokenizer(folder, chat_template=opened), written
        self.encoder = Encoder(self.tokenizer, thinking=MARKS)

    def tokenize(self, examples):
        return [self.encoder.encode(e, sequence=i, max_tokens=None) for i, e in enumerate(examples)]

    def generate(self, prompts, *, sampling):
        end = self.tokenizer.eos_token_id
        tape = Tape([*self.tokenizer.encode(self.written), end], len(self.tokenizer))
        return generate(tape, None, prompts, sampling, stop={end}, max_tokens=999, pad_id=0, device=torch.device("cpu"),
                        thinking=self.encoder.marks)


@pytest.mark.parametrize(("written", "most", "thought", "answer"), [
    ("It moved.\n</think>\n\nThere.", 99, "It moved.", "There."), ("</think>\n\nThere.", 99, "", "There."),
    ("It moved.", 3, None, "")], ids=["thinks", "does-not-think", "is-cut"])
def test_an_answer_whose_thinking_the_prompt_opened_says_so(tmp_path, written, most, thought, answer):
    """Else the finished dialogue would take the thought for the answer."""
    model = Writer(tmp_path, written)
    [out] = complete(model, [Example(messages=ASKED[:1])], Sampling(max_new=most))
    assert out.messages[-1].content.startswith("<think>\n")
    assert out.continue_last == (most == 3)
    found = parts(model.tokenizer, out)
    if thought is None:
        thought = model.tokenizer.decode(model.tokenizer.encode(written)[:most]).strip()
    assert found == (thought, answer, "Where?")
