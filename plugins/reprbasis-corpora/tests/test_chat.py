"""The chat corpus: accepted forms, errors with file and line, options."""

import json

import pytest
from reprbasis_corpora.chat import ChatCorpus
from reprbasis_corpora.config import ChatConfig

from reprbasis.errors import CapabilityError, DataError


def corpus(tmp_path, *rows, **options):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
    return ChatCorpus(ChatConfig(path=path, **options))


def dialogue(example):
    return [(m.role, m.content) for m in example.messages]


HELLO = [("user", "Hello?"), ("assistant", "Hi.")]


@pytest.mark.parametrize("row", [
    {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]},
    {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]},
    {"prompt": "Hello?", "response": "Hi."},
    {"instruction": "Hello?", "input": "", "output": "Hi."},
])
def test_forms(tmp_path, row):
    [example] = corpus(tmp_path, {**row, "id": "a", "domain": "greeting"}).examples()
    assert dialogue(example) == HELLO
    assert (example.key, example.meta, example.origin) == ("a", {"domain": "greeting"}, f"{tmp_path}/d.jsonl:1")


def test_input_follows_the_instruction(tmp_path):
    [example] = corpus(tmp_path, {"instruction": "Translate.", "input": "Hund", "output": "dog"}).examples()
    assert dialogue(example) == [("user", "Translate.\n\nHund"), ("assistant", "dog")]


def test_user_turns_alone_will_do(tmp_path):
    [example] = corpus(tmp_path, {"prompt": "Hello?"}).examples()
    assert dialogue(example) == HELLO[:1]


GOOD = {"prompt": "Hello?", "id": "x"}


@pytest.mark.parametrize(("row", "message"), [
    ("{oops", "not JSON"),
    ("[1]", "JSON list, not an object"),
    ({"question": "?"}, "none of the accepted forms"),
    ({"messages": []}, "must be a list of objects"),
    ({"messages": [{"role": "user", "text": "?"}]}, "must be a list of objects"),
    ({"messages": [{"role": "robot", "content": "?"}]}, "unknown role 'robot'"),
    ({"messages": [{"role": ["user"], "content": "?"}]}, "unknown role"),
    ({"messages": [{"role": "user", "content": " "}]}, "content is empty"),
    ({"messages": [{"role": "user", "content": None}]}, "not text"),
    ({"messages": [{"role": "assistant", "content": "Hi."}]}, "no user turn"),
    ({"messages": [{"role": "user", "content": "?"}, {"role": "system", "content": "!"}]}, "stands after another"),
    ({"prompt": ["Hello?"]}, "not text"),
    ({"prompt": "Again?", "id": "x"}, "already used at"),
    ({"prompt": "Again?", "id": 1.5}, "neither text nor a whole number"),
])
def test_errors_name_file_and_line(tmp_path, row, message):
    with pytest.raises(DataError, match=message) as caught:
        list(corpus(tmp_path, GOOD, "", row).examples())
    assert caught.value.where.startswith(f"{tmp_path}/d.jsonl:3")
    assert caught.value.do


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_no_rows(tmp_path, text):
    with pytest.raises(DataError, match="no dialogue"):
        corpus(tmp_path, text).examples()


def test_missing_and_not_utf8(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        ChatCorpus(ChatConfig(path=tmp_path / "none.jsonl")).examples()
    (tmp_path / "l1.jsonl").write_bytes(b'{"prompt": "ok"}\n{"prompt": "caf\xe9"}')
    with pytest.raises(DataError, match="not UTF-8") as caught:
        ChatCorpus(ChatConfig(path=tmp_path / "l1.jsonl")).examples()
    assert caught.value.where.endswith(":2")


def test_line_separators_inside_strings_do_not_split_rows(tmp_path):
    [example] = corpus(tmp_path, '{"prompt": "a\u2028b\u0085c"}').examples()
    assert example.messages[0].content == "a\u2028b\u0085c"


def test_roles_and_system(tmp_path):
    rows = [{"messages": [{"role": "tool", "content": "42"}]},
            {"messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "?"}]}]
    first, second = corpus(tmp_path, *rows, roles={"tool": "user"}, system="Be brief.").examples()
    assert dialogue(first) == [("system", "Be brief."), ("user", "42")]
    assert dialogue(second) == [("system", "Own."), ("user", "?")]


def test_skip_and_limit_make_parts_that_share_nothing():
    keys = lambda **options: [e.key for e in ChatCorpus(ChatConfig(shuffle=True, **options)).examples(seed=2)]  # noqa: E731
    assert keys(limit=30) + keys(skip=30) == keys()
    with pytest.raises(DataError, match="skip: 410 leaves none of the 410 examples"):
        keys(skip=410)


def test_domains_limit_shuffle():
    maths = list(ChatCorpus(ChatConfig(domains=("maths",))).examples())
    assert {e.meta["domain"] for e in maths} == {"maths"}
    some = ChatCorpus(ChatConfig(domains=("maths",), shuffle=True, limit=9))
    a, b, c = ([e.key for e in some.examples(seed=s)] for s in (1, 1, 2))
    assert a == b != c
    assert len(a) == 9
    assert set(a) <= {e.key for e in maths}
    with pytest.raises(DataError, match="no dialogue has the domain 'math'") as caught:
        ChatCorpus(ChatConfig(domains=("math",))).examples()
    assert "'maths'" in caught.value.do


def test_generation_needs_a_model():
    with pytest.raises(CapabilityError, match="no model"):
        ChatCorpus(ChatConfig(generate=True)).examples()


URI = "data:image/png;base64,AA=="


@pytest.mark.parametrize("row", [
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]},
                  {"role": "assistant", "content": "A."},
                  {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "image", "url": URI}]}]},
    {"images": ["a.png", URI], "conversations": [
        {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}, {"from": "human", "value": "And <image>"}]},
])
def test_images_go_with_their_messages(tmp_path, row):
    (tmp_path / "a.png").write_bytes(b"")
    [found] = corpus(tmp_path, row).examples()
    assert found.images == (str(tmp_path / "a.png"), URI)
    assert [(m.content, m.images) for m in found.messages] == [("What?", (0,)), ("A.", ()), ("And", (1,))]
    assert found.meta == {}


@pytest.mark.parametrize(("row", "told"), [
    ({"messages": [{"role": "user", "content": [{"type": "image", "image": "no.png"}]}]}, "no image"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "not text, and no image"),
    ({"image": "a.png", "messages": [{"role": "user", "content": "What?"}]}, "no message shows"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "image": URI}]}]}, "content is empty"),
])
def test_unusable_images_are_told(tmp_path, row, told):
    with pytest.raises(DataError, match=told):
        list(corpus(tmp_path, row).examples())
