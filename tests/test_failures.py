"""What goes wrong is said in one clear message, with the right exit code, and nothing half-written stays behind."""

import errno
import json
import os

import pytest
import torch

import reprbasis as rb
from reprbasis.artifacts import store
from reprbasis.cli.main import main

PIPELINE = """
reprbasis: 1
name: f
model: {{use: llama, checkpoint: {checkpoint}}}
steps:
  acts: {{do: harvest, corpus: {{use: chat, path: {corpus}}}, tokens: 1500, row_tokens: 128, shard_tokens: 300,
         sites: ["resid.*"]}}
  basis: {{do: learn, from: {{activations: acts}}, learner: {{use: topk, width: 64, k: 4}}, rows: 2000, batch: 64}}
  eval: {{do: evaluate, from: {{basis: basis, activations: acts}},
         evaluators: [{{use: reconstruction, tokens: 100, sites: resid.0}}]}}
"""


@pytest.fixture
def pipeline(tmp_path, checkpoint):
    rows = [{"messages": [{"role": "user", "content": "what is " + " and ".join(map(str, range(i % 7 + 1)))},
                          {"role": "assistant", "content": str(i)}]} for i in range(60)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "f.yaml"
    path.write_text(PIPELINE.format(checkpoint=checkpoint, corpus=tmp_path / "chat.jsonl"))
    return path


def run(capfd, pipeline, *more):
    code = main(["run", str(pipeline), "--runs", str(pipeline.parent / "runs"), *more])
    return code, capfd.readouterr().err


def finished(pipeline):
    return sorted(p.parent.name.partition("-")[0] for p in pipeline.parent.glob("runs/f/*/manifest.json"))


def folders(pipeline):
    return sorted(p.name.partition("-")[0] for p in pipeline.parent.glob("runs/f/*") if p.is_dir() and p.name != ".work")


def test_the_pipeline_is_sound(capfd, pipeline):
    assert run(capfd, pipeline)[0] == 0
    assert finished(pipeline) == folders(pipeline) == ["acts", "basis", "eval"]


@pytest.mark.parametrize(("override", "words"), [
    ("steps.acts.sites=residual.*", "unknown site"),
    ("steps.acts.sites=resid.7", "3 layers of 'resid'"),
    ("steps.eval.evaluators=[{use: reconstruction, sites: resid.3}]", "3 layers of 'resid'"),
    ("steps.basis.learner.width=0", "greater than or equal to 1"),
    ("steps.basis.learner.use=topkk", "did you mean 'topk'"),
    ("steps.basis.batch=1000000", "two batches, 2000000"),
    ("steps.acts.corpus.path=/nowhere/x.jsonl", "/nowhere/x.jsonl"),
])
def test_wrong_input_is_exit_code_2(capfd, pipeline, override, words):
    code, said = run(capfd, pipeline, "--set", override)
    assert code == 2
    assert words in said
    assert "Traceback" not in said
    assert finished(pipeline) == folders(pipeline)


def test_a_row_that_is_not_json_is_named(capfd, pipeline):
    corpus = pipeline.parent / "chat.jsonl"
    lines = corpus.read_text().splitlines()
    lines[4] = lines[4][:-3]
    corpus.write_text("\n".join(lines))
    code, said = run(capfd, pipeline)
    assert code == 2
    assert "chat.jsonl:5" in said
    assert folders(pipeline) == []


def test_an_empty_corpus_is_said(capfd, pipeline):
    (pipeline.parent / "chat.jsonl").write_text("")
    code, said = run(capfd, pipeline)
    assert code == 2
    assert "chat.jsonl" in said
    assert folders(pipeline) == []


def test_a_damaged_artifact_is_named(capfd, pipeline):
    assert run(capfd, pipeline, "--until", "acts")[0] == 0
    path = next(pipeline.parent.glob("runs/f/acts-*/shards/shard-00001.safetensors"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 16
    path.write_bytes(bytes(data))
    code, said = run(capfd, pipeline)
    assert code == 1
    assert "shard-00001.safetensors" in said
    assert "--force acts" in said
    assert run(capfd, pipeline, "--force", "acts")[0] == 0


@pytest.mark.parametrize("step", ["acts", "basis"])
def test_a_full_disk_is_said_and_the_run_goes_on_later(capfd, pipeline, monkeypatch, step):
    real, calls = store.save_file, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) > (2 if step == "acts" else 0) and f"{step}-" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(tensors, path)

    monkeypatch.setattr(store, "save_file", full)
    code, said = run(capfd, pipeline)
    assert code == 1
    assert "the disk is full" in said
    assert step not in folders(pipeline)
    assert not list(pipeline.parent.rglob("*.part*"))
    monkeypatch.setattr(store, "save_file", real)
    assert run(capfd, pipeline)[0] == 0


def test_a_read_only_place_is_said(capfd, pipeline):
    runs = pipeline.parent / "runs"
    runs.write_text("a file where the folder should be")
    code, said = run(capfd, pipeline)
    assert code == 1
    assert "cannot be written to" in said
    assert str(runs) in said


def test_nan_activations_are_named(capfd, pipeline, monkeypatch):
    from reprbasis_llama.model import LlamaAdapter

    real = LlamaAdapter.forward

    def sick(self, batch, **options):
        found = real(self, batch, **options)
        found.sites[rb.Site("resid", 1)][0, 0, 0] = torch.nan
        return found

    monkeypatch.setattr(LlamaAdapter, "forward", sick)
    code, said = run(capfd, pipeline)
    assert code == 1
    assert "resid.1: activations are NaN or infinite in sequence 0" in said
    assert folders(pipeline) == []


def test_a_basis_of_another_width_is_said(capfd, pipeline, tmp_path):
    assert run(capfd, pipeline, "--until", "basis")[0] == 0
    basis = rb.load(next(pipeline.parent.glob("runs/f/basis-*")))
    with pytest.raises(rb.errors.ShapeError, match=r"activations at resid\.1 have width 48, the dictionary takes 32"):
        basis.encode(rb.Site("resid", 1), torch.zeros(3, 48))


def test_an_interrupt_is_exit_code_130(capfd, pipeline, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("reprbasis_steps.steps.fit", interrupt)
    code, said = run(capfd, pipeline)
    assert code == 130
    assert "run the same command again" in said
    assert finished(pipeline) == ["acts"]
