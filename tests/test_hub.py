"""The hub without a network: a fake that keeps repositories in folders. What is uploaded, the card, and what is verified."""

import json
import shutil
from dataclasses import dataclass, replace

import pytest
import torch

import reprbasis as rb
from reprbasis.artifacts import hub as hub_module
from reprbasis.artifacts.hub import card, local_paths, stage
from reprbasis.artifacts.manifest import read_manifest, write_manifest
from reprbasis.cli.main import main
from reprbasis.errors import ArtifactError, UserError
from reprbasis.interfaces.evaluator import Findings, Measurement
from reprbasis.testing.toys import toy_basis, toy_model


@dataclass
class Commit:
    commit_url: str


class FakeHub:
    """`HfApi` as far as it is used; repositories are folders."""

    def __init__(self, root):
        self.root, self.private, self.messages = root, {}, []

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        self.private.setdefault(repo_id, private)

    def upload_folder(self, *, repo_id, folder_path, commit_message=None):
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        self.messages.append(commit_message)
        return Commit(f"https://example.org/{repo_id}/commit/1")

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns=None):
        from huggingface_hub.errors import RepositoryNotFoundError

        if not (self.root / repo_id).is_dir():
            class Response:
                headers, status_code, request = {}, 404, None

            raise RepositoryNotFoundError(f"404: {repo_id} not found\nsecond line", response=Response())
        target = self.root / ".cache" / repo_id
        shutil.rmtree(target, ignore_errors=True)
        ends = tuple(p.removeprefix("*") for p in allow_patterns)
        for path in (self.root / repo_id).rglob("*"):
            if path.is_file() and path.name.endswith(ends):
                (target / path.relative_to(self.root / repo_id)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / path.relative_to(self.root / repo_id))
        return str(target)


FACTS = {"activations": {"model": {"config": {"checkpoint": "org/tiny-llama"}, "revision": "abc"}, "tokens": 600, "sequences": 40,
                         "corpus": {"use": "toys/toy-words"}},
         "training": {"rows": 2048, "batch": 128, "lr": 0.01, "normaliser": "affine", "seed": 0}}


@pytest.fixture
def basis():
    found = toy_basis(toy_model(), ["resid.*", "mlp_out.*", "embed"])
    found.details.update(FACTS)
    return found


@pytest.fixture
def saved(basis, tmp_path):
    return rb.save(basis, tmp_path / "runs" / "basis", fingerprint="f" * 64)


@pytest.fixture
def findings(tmp_path):
    values, shifts = {"resid.0": 0.1, "resid.1": 0.2, "embed": 0.45}, {"global": 0.0, "untrained": 0.5}
    rows = [Measurement("fvu", v + shift, 100, v + shift - 0.1, v + shift + 0.1, condition, site)
            for condition, shift in shifts.items() for site, v in values.items()]
    rows += [Measurement("kl", 0.3, 7, 0.2, 0.4, "global", "all resid.*", "nats"),
             Measurement("reuse", 0.5, 8, condition="global")]
    return rb.save(Findings(rows, notes=["Measured on held-out text."]), tmp_path / "runs" / "eval", inputs={"basis": "f" * 64})


@pytest.fixture
def fake(tmp_path, monkeypatch):
    found = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub_module, "_hub", lambda: found)
    return found


def test_there_and_back(basis, saved, fake, tmp_path):
    url = rb.push(saved, "me/my-basis", license="apache-2.0", private=True)
    assert url == "https://example.org/me/my-basis/commit/1"
    assert fake.private == {"me/my-basis": True}
    assert sorted(p.name for p in (tmp_path / "hub" / "me" / "my-basis").iterdir()) == [
        "README.md", "manifest.json", "tensors.safetensors"]
    again = rb.load(rb.pull("me/my-basis", tmp_path / "again"))
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["manifest.json", "tensors.safetensors"]
    assert all(torch.equal(t, again.tensors()[n]) for n, t in basis.tensors().items())
    assert again.facts() == basis.facts()


def test_the_card_tells_what_it_is(saved, findings):
    text = card(read_manifest(saved), repo="me/my-basis", findings=read_manifest(findings), license="apache-2.0")
    head = text.split("---")[1]
    assert "license: apache-2.0" in head
    assert "base_model: org/tiny-llama" in head
    for told in ("# my-basis", "org/tiny-llama, revision `abc`", "5: `embed`, `mlp_out` (layers 0 to 1), `resid` (layers 0 to 1)",
                 "width 8, 8 latents", "`toys/toy-dictionary`", "rows 2048", "`toys/toy-words`, 600 tokens",
                 "| fvu | global | 3 sites | 0.2 (0.1 to 0.45) | 100 |\n| fvu | untrained | 3 sites | 0.7 (0.6 to 0.95) | 100 |",
                 "| kl (nats) | global | all resid.* | 0.3 [0.2, 0.4] | 7 |", "| reuse | global | everything | 0.5 | 8 |",
                 "Measured on held-out text.", "reprbasis pull me/my-basis my-basis", "pip install reprbasis toys",
                 "The dictionary: apache-2.0.", "tensors.safetensors"):
        assert told in text, told
    assert json.loads(text.split("```json\n")[1].split("```")[0])["training"]["seed"] == 0


def test_a_card_without_numbers_or_licence_says_so(saved):
    text = card(read_manifest(saved), repo="me/x")
    assert "No measurements came with this upload." in text
    assert "has not stated a licence" in text
    assert "license:" not in text.split("---")[1]


def test_a_local_model_is_no_base_model(basis, tmp_path):
    basis.details["activations"] = {"model": {"config": {"checkpoint": "/data/models/tiny"}}}
    folder = rb.save(basis, tmp_path / "basis")
    assert "base_model" not in card(read_manifest(folder), repo="me/x")
    assert local_paths(read_manifest(folder)) == ["/data/models/tiny"]


def test_other_artifacts_have_a_card_too(findings):
    text = card(read_manifest(findings), repo="me/numbers")
    assert "A findings of" in text
    assert 'findings = rb.load("my-findings")' in text


def test_staged_by_hand(saved, tmp_path):
    folder = stage(saved, tmp_path / "staged", repo="me/x")
    assert (folder / "README.md").read_text() == card(read_manifest(saved), repo="me/x")
    assert rb.load(rb.pull(str(folder), tmp_path / "again")).sites
    with pytest.raises(UserError, match="something is here"):
        stage(saved, tmp_path / "staged")
    with pytest.raises(UserError, match="leave revision out"):
        rb.pull(str(folder), tmp_path / "third", revision="main")


def test_findings_must_belong_to_it(basis, saved, findings, tmp_path):
    other = rb.save(basis, tmp_path / "other", fingerprint="e" * 64)
    with pytest.raises(UserError, match="not made with this artifact"):
        stage(other, tmp_path / "staged", findings=findings)
    with pytest.raises(UserError, match="this is a basis, not findings"):
        stage(saved, tmp_path / "staged", findings=other)
    assert not (tmp_path / "staged").exists()


def test_a_damaged_artifact_is_not_uploaded(saved, fake, tmp_path):
    (saved / "tensors.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ArtifactError, match="damaged"):
        rb.push(saved, "me/x")
    assert not (tmp_path / "hub").exists()


def test_a_changed_download_is_refused(saved, fake, tmp_path):
    rb.push(saved, "me/x")
    file = tmp_path / "hub" / "me" / "x" / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="pull again") as caught:
        rb.pull("me/x", tmp_path / "again")
    assert "me/x: tensors.safetensors" in str(caught.value)
    file.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        rb.pull("me/x", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert [p for p in tmp_path.iterdir() if ".part" in p.name] == []


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/evil.json", "model.pkl", "code.py", "a\\..\\b.json"])
def test_a_manifest_cannot_reach_out(saved, fake, tmp_path, name):
    manifest = read_manifest(saved)
    write_manifest(saved, replace(manifest, files={**manifest.files, name: next(iter(manifest.files.values()))}))
    shutil.copytree(saved, tmp_path / "hub" / "me" / "x")
    with pytest.raises(ArtifactError, match="not a safetensors or JSON file"):
        rb.pull("me/x", tmp_path / "again")
    with pytest.raises(ArtifactError, match="not a safetensors or JSON file"):
        rb.push(saved, "me/y")


def test_only_safetensors_and_json_are_fetched(saved, fake, tmp_path):
    rb.push(saved, "me/x")
    (tmp_path / "hub" / "me" / "x" / "extra.pkl").write_bytes(b"no")
    (tmp_path / "hub" / "me" / "x" / "unlisted.json").write_text("{}")
    assert sorted(p.name for p in rb.pull("me/x", tmp_path / "again").iterdir()) == ["manifest.json", "tensors.safetensors"]


def test_the_hub_says_no(fake, tmp_path):
    with pytest.raises(UserError, match="the hub answers: 404: me/none not found") as caught:
        rb.pull("me/none", tmp_path / "again")
    assert caught.value.exit_code == 2


def test_no_connection_is_no_traceback(saved, fake, tmp_path):
    refused = type("ConnectError", (Exception,), {"__module__": "httpx2"})

    def fail(*args, **kwargs):
        raise refused("Name or service not known")

    fake.create_repo = fail
    with pytest.raises(UserError, match="Name or service not known"):
        rb.push(saved, "me/x")
    fake.create_repo = lambda *args, **kwargs: 1 / 0
    with pytest.raises(ZeroDivisionError):  # a defect stays one
        rb.push(saved, "me/x")


def test_commands(saved, findings, fake, tmp_path, capsys):
    assert main(["push", str(saved), "me/x", "--findings", str(findings), "--license", "mit", "--message", "First"]) == 0
    assert capsys.readouterr().out == "https://example.org/me/x/commit/1\n"
    assert fake.messages == ["First"]
    assert main(["pull", "me/x", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'again'}: basis, 1 files verified, made by toys/toy-dictionary\n"
    assert main(["pull", "me/x", str(tmp_path / "again")]) == 2
    assert main(["pull", "me/none", str(tmp_path / "other")]) == 2
    assert main(["push", str(tmp_path), "me/x"]) == 2
    assert main(["push", str(saved), "me/x", "--stage", str(tmp_path / "look")]) == 0
    assert (tmp_path / "look" / "README.md").is_file()
    assert len(fake.messages) == 1


def test_paths_of_this_machine_are_told(basis, fake, tmp_path, capsys):
    basis.details["activations"]["corpus"]["path"] = "/data/secret.jsonl"
    folder = rb.save(basis, tmp_path / "basis")
    assert main(["push", str(folder), "me/x"]) == 0
    assert "which everybody will see: /data/secret.jsonl" in capsys.readouterr().err


def test_the_real_client_fits():
    """The methods and arguments that are used exist in the installed huggingface_hub."""
    import inspect

    from huggingface_hub import HfApi

    for name, used in (("create_repo", {"private", "exist_ok"}), ("upload_folder", {"repo_id", "folder_path", "commit_message"}),
                       ("snapshot_download", {"revision", "allow_patterns"})):
        assert used <= set(inspect.signature(getattr(HfApi, name)).parameters)
    assert isinstance(hub_module._hub(), HfApi)
