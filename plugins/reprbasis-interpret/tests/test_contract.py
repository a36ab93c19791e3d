import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reprbasis.testing import EvaluatorContract, JudgeContract

HOST = "127.0.0.1"
SMALL = {"window": 4, "shown": 2, "tests": 2, "features": 4, "text": "train", "tokens": 400, "resamples": 100}


class TestInterpret(EvaluatorContract):
    name, config = "interpret", {**SMALL, "sites": "resid.*"}


class TestInterpretBySemantics(EvaluatorContract):
    name, config = "interpret", {**SMALL, "judge": {"use": "semantic"}, "protocols": ["comsem"]}


class TestLexical(JudgeContract):
    name = "lexical"


class TestSemantic(JudgeContract):
    name = "semantic"


class TestLocal(JudgeContract):
    name, config = "local", {"max_new": 4, "model": {"use": "qwen"}}
    exempt = dict.fromkeys(("test_a_planted_word_is_found_in_passages", "test_marks_matter"),
                           "a tiny model understands no question")


class Stub(BaseHTTPRequestHandler):
    """A server that names the word marked most often, and looks for it."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        [said] = [m["content"] for m in body["messages"]]
        if said.startswith("Each line"):
            answer = Counter(re.findall(r"<<\s*(\w+)>>", said)[1:]).most_common(1)[0][0]
        else:
            text, question = said.split("\n", 1)
            word = re.search(r"description: (.*)\? Answer", question)[1]
            answer = "Yes." if (f"<< {word}>>" in text if "<<" in text else word in text) else "No"
        reply = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args):
        """Quiet."""


class TestOpenAI(JudgeContract):
    name = "openai"

    @pytest.fixture(autouse=True, scope="class")
    def _server(self, request):
        server = ThreadingHTTPServer((HOST, 0), Stub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        request.cls.url = f"http://{HOST}:{server.server_port}/v1"
        yield
        server.shutdown()
        server.server_close()

    def options(self):
        return {"model": "stub", "url": self.url, "retries": 0}
