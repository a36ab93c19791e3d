"""Artifacts are atomic, hashed, and say what is wrong."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

import reprbasis as rb
from reprbasis.artifacts import manifest, store
from reprbasis.errors import ArtifactError, StorageError
from reprbasis.interfaces.evaluator import Context, FeatureCard, Figure, Findings, Measurement
from reprbasis.interfaces.finder import Circuit
from reprbasis.interfaces.scorer import ScoreTable
from reprbasis.sites import Site


@pytest.fixture
def findings():
    card = FeatureCard(3, 0.1, 2.0, {"resid.1": 1.0}, [Context(["a", "</b>"], [0.0, 2.0], 1, "resid.1")])
    return Findings([Measurement("fvu", 0.5, 10, 0.4, 0.6, "global", "resid.1")], [Figure("line", "t", "c", {"a": [1, 2]})],
                    [card], ["note"], {"x": torch.arange(1000.0)})


def test_what_is_saved_is_loaded(tmp_path, findings):
    back = rb.load(rb.save(findings, tmp_path / "f"))
    assert back.facts() == json.loads(json.dumps(findings.facts()))
    assert torch.equal(back.values["x"], findings.values["x"])


def test_scores_and_circuits_round_trip(tmp_path):
    edge = torch.sparse_coo_tensor([[0, 2], [1, 3]], [0.5, -1.0], (4, 4), check_invariants=True)
    scores = ScoreTable({Site("resid", 1): torch.randn(4)}, {(Site("resid", 0), Site("resid", 1)): edge}, {"n": 3})
    circuit = Circuit({Site("resid", 1): torch.tensor([True, False, True, False])}, scores, {"task": "t"})
    back = rb.load(rb.save(circuit, tmp_path / "c"))
    assert back.size() == 2
    assert torch.equal(back.scores.edges[Site("resid", 0), Site("resid", 1)].to_dense(), edge.to_dense())
    assert torch.equal(back.scores.nodes[Site("resid", 1)], scores.nodes[Site("resid", 1)])


@pytest.mark.parametrize("where", [0, 5, -1])
def test_a_flipped_byte_is_found_and_named(tmp_path, findings, where):
    folder = rb.save(findings, tmp_path / "findings-0123")
    path = folder / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"(?s)tensors\.safetensors.*damaged.*--force findings"):
        rb.load(folder)


def test_a_missing_file_is_named(tmp_path, findings):
    folder = rb.save(findings, tmp_path / "f")
    (folder / "tensors.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"tensors\.safetensors.*missing"):
        rb.load(folder)


def test_a_folder_without_manifest_is_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="no complete artifact"):
        rb.load(tmp_path)


def test_a_damaged_manifest_is_named(tmp_path, findings):
    folder = rb.save(findings, tmp_path / "f")
    (folder / "manifest.json").write_text('{"format": 1, ')
    with pytest.raises(ArtifactError, match=r"manifest\.json.*damaged"):
        rb.load(folder)


def test_a_newer_format_is_refused(tmp_path, findings):
    folder = rb.save(findings, tmp_path / "f")
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(raw | {"format": 99}))
    with pytest.raises(ArtifactError, match="format 99"):
        rb.load(folder)


def test_nothing_is_overwritten_by_accident(tmp_path, findings):
    folder = rb.save(findings, tmp_path / "f")
    with pytest.raises(ArtifactError, match="already"):
        rb.save(findings, folder)
    rb.save(findings, folder, overwrite=True)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ArtifactError, match="already"):
        rb.save(findings, tmp_path / "mine", overwrite=True)


@pytest.mark.parametrize(("code", "word"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written"),
                                            (errno.EACCES, "cannot be written")])
def test_a_failing_disk_leaves_nothing_behind(tmp_path, findings, monkeypatch, code, word):
    real = Path.open

    def failing(self, mode="r", *args, **kwargs):
        if "w" in mode and self.name.startswith("manifest.json"):
            raise OSError(code, os.strerror(code), str(self))
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(StorageError, match=word):
        rb.save(findings, tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_a_really_full_disk_leaves_nothing_behind(tmp_path, findings):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left") as caught, open("/dev/full", "wb", buffering=0) as f:
        f.write(b"x")
    assert caught.value.errno == errno.ENOSPC  # the error that the message is made from
    with pytest.raises(StorageError, match="disk is full"), manifest.storage(tmp_path):
        raise caught.value


def test_fingerprints_depend_on_content_not_order():
    assert manifest.fingerprint({"a": 1, "b": [2]}) == manifest.fingerprint({"b": [2], "a": 1})
    assert manifest.fingerprint({"a": 1}) != manifest.fingerprint({"a": 2})


def test_unreadable_tensors_are_named(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ArtifactError, match=r"x\.safetensors"):
        store.read_tensors(tmp_path / "x.safetensors")
