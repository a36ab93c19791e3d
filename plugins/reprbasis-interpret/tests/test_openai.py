"""What the judge over the network does when things go wrong, against a server on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from reprbasis_interpret import questions

import reprbasis as rb
from reprbasis.errors import ReprBasisError, UserError
from reprbasis.interfaces.judge import Explanation, Passage

HOST = "127.0.0.1"
PASSAGES = [Passage((" a", " b"), (1, 2), (0,)), Passage((" c", " d"), (3, 4))]


@pytest.fixture
def server():
    """Answers from a list of (status, answer), then `Yes.`; keeps what it was asked."""
    plan, asked = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.headers.get("Authorization"), json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            status, answer = plan.pop(0) if plan else (200, {"choices": [{"message": {"content": "Yes."}}]})
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args):
            """Quiet."""

    httpd = ThreadingHTTPServer((HOST, 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield plan, asked, f"http://{HOST}:{httpd.server_port}/v1"
    httpd.shutdown()
    httpd.server_close()


def judge(url, **options):
    return rb.create("judge", "openai", **{"model": "m", "url": url, "parallel": 1, "key": "SOME_KEY", **options})


def test_the_key_comes_from_the_environment_and_is_optional(server, monkeypatch):
    _, asked, url = server
    monkeypatch.delenv("SOME_KEY", raising=False)
    judge(url).match(Explanation("x"), PASSAGES[:1], model=None)
    monkeypatch.setenv("SOME_KEY", "secret")
    judge(url).match(Explanation("x"), PASSAGES[:1], model=None)
    assert [key for key, _ in asked] == [None, "Bearer secret"]
    assert asked[0][1]["temperature"] == 0


def test_nothing_is_asked_twice(server, tmp_path):
    _, asked, url = server
    one = judge(url, cache=str(tmp_path / "kept"))
    for _ in range(2):
        assert one.match(Explanation("x"), PASSAGES, model=None).tolist() == [1, 1]
    assert len(asked) == 2
    judge(url, cache=str(tmp_path / "kept")).match(Explanation("x"), PASSAGES, model=None)
    assert len(asked) == 2
    judge(url).match(Explanation("x"), PASSAGES, model=None)
    assert len(asked) == 4


def test_what_may_pass_is_tried_again_and_the_rest_is_not(server):
    plan, asked, url = server
    plan += [(503, {}), (429, {})]
    assert judge(url).match(Explanation("x"), PASSAGES[:1], model=None).tolist() == [1]
    assert len(asked) == 3
    plan += [(401, {})]
    with pytest.raises(UserError, match="401"):
        judge(url).match(Explanation("x"), PASSAGES[:1], model=None)
    assert len(asked) == 4
    plan += [(500, {})] * 2
    with pytest.raises(ReprBasisError, match="does not answer"):
        judge(url, retries=1).match(Explanation("x"), PASSAGES[:1], model=None)


def test_the_budget_is_kept(server):
    _, asked, url = server
    with pytest.raises(UserError, match="budget of 1"):
        judge(url, max_calls=1).match(Explanation("x"), PASSAGES, model=None)
    assert len(asked) == 1


def test_another_form_of_answer_is_said(server):
    plan, _, url = server
    plan += [(200, {"answer": "Yes"})]
    with pytest.raises(ReprBasisError, match="another form"):
        judge(url).match(Explanation("x"), PASSAGES[:1], model=None)


def test_no_server_is_said():
    with pytest.raises(ReprBasisError, match="does not answer"):
        judge(f"http://{HOST}:9/v1", retries=0, timeout=2).match(Explanation("x"), PASSAGES[:1], model=None)


@pytest.mark.parametrize(("answer", "value"), [("Yes.", 1), ("yes", 1), (" **Yes**", 1), ("No", 0), ("no, it is not", 0),
                                               ("Maybe", 0.5), ("", 0.5)])
def test_verdicts(answer, value):
    assert questions.verdict(answer) == value


def test_questions_show_marks_and_no_numbers():
    asked = questions.explain(PASSAGES[:1], PASSAGES[1:])
    assert "<< a>> b" in asked
    assert " c d" in asked
    assert "marked" in questions.ask(PASSAGES[0], "names")
    assert "marked" not in questions.ask(PASSAGES[1], "names")
    assert questions.phrase('"Names of cities."\nBecause') == "Names of cities"
    assert questions.phrase("  \n") == "nothing"
