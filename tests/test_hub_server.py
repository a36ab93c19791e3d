"""The hub through its own client: `huggingface_hub` against a server on this machine that keeps files in memory."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import HfApi, constants

import reprbasis as rb
from reprbasis.errors import UserError
from reprbasis.testing.toys import toy_basis, toy_model

HERE = "localhost"


class Handler(BaseHTTPRequestHandler):
    """As much of the hub as a push and a pull ask for; small files travel inside the commit."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        assert self.headers["Authorization"] == "Bearer secret"
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.server.private = asked.get("private", asked.get("visibility") == "private")
            return self.answer({"url": f"{self.server.address}/me/x"})
        if self.path == "/api/models/me/x/preupload/main":
            names = [f["path"] for f in json.loads(body)["files"]]
            return self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if self.path == "/api/models/me/x/commit/main":
            head, *files = [json.loads(line) for line in body.decode().splitlines()]
            self.server.summary = head["value"]["summary"]
            self.server.files |= {f["value"]["path"]: base64.b64decode(f["value"]["content"]) for f in files}
            made = f"{self.server.address}/me/x/commit/{'a' * 40}"
            return self.answer({"commitOid": "a" * 40, "commitUrl": made, "success": True})
        return self.answer({"errors": [], "warnings": []} if self.path == "/api/validate-yaml" else {"error": self.path}, 200)

    def do_GET(self):
        if found := re.match(r"/me/x/resolve/\w+/(.+)", self.path):
            data = self.server.files[found[1]]
            self.send_response(200)
            for name, value in (("X-Repo-Commit", "a" * 40), ("ETag", f'"{hashlib.sha1(data).hexdigest()}"'),
                                ("Content-Length", str(len(data)))):
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)
            return None
        if self.path.startswith("/api/models/me/x"):
            names = [{"rfilename": n, "type": "file", "path": n, "size": len(v), "oid": "0"}
                     for n, v in self.server.files.items()]
            tree = "/tree/" in self.path
            return self.answer(names if tree else {"id": "me/x", "modelId": "me/x", "sha": "a" * 40, "siblings": names})
        return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, value, status=200, headers=()):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    found = ThreadingHTTPServer((HERE, 0), Handler)
    found.address, found.files = f"http://{HERE}:{found.server_port}", {}
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def test_pushed_with_its_card_and_pulled_bit_for_bit(server, tmp_path):
    basis, api = toy_basis(toy_model(), ["resid.*"]), HfApi(endpoint=server.address, token="secret")
    folder = rb.save(basis, tmp_path / "basis")
    assert rb.push(folder, "me/x", private=True, message="First", hub=api).endswith("/me/x/commit/" + "a" * 40)
    assert (server.private, server.summary) == (True, "First")
    assert sorted(server.files) == ["README.md", "manifest.json", "tensors.safetensors"]
    assert b"reprbasis pull me/x my-basis" in server.files["README.md"]
    again = rb.load(rb.pull("me/x", tmp_path / "again", hub=api))
    assert all(torch.equal(v, again.tensors()[k]) for k, v in basis.tensors().items())
    assert not (tmp_path / "again" / "README.md").exists()  # nothing but JSON and safetensors is fetched


def test_what_is_not_there_and_who_does_not_answer_is_told(server, tmp_path):
    with pytest.raises(UserError, match="me/none"):
        rb.pull("me/none", tmp_path / "a", hub=HfApi(endpoint=server.address, token="secret"))
    with pytest.raises(UserError, match="me/x"):
        rb.pull("me/x", tmp_path / "b", hub=HfApi(endpoint=f"http://{HERE}:9", token="secret"))  # nobody listens there
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
