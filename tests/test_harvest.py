"""Harvest and the whole pipeline on a tiny random model: what is stored is what the model computed, whatever interrupts it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import reprbasis as rb
from reprbasis.errors import ArtifactError, DataError, NumericsError, SiteError
from reprbasis.interfaces.tokens import Example, Message, TokenBatch
from reprbasis.runtime import harvest as harvesting
from reprbasis.sites import Site


@pytest.fixture(scope="session")
def model(checkpoint):
    return rb.create("model", "llama", checkpoint=str(checkpoint))


def examples(n=60):
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "seven", "red", "birds", "that", "were", "not", "there"]

    def said(i):
        question = " ".join(words[(i + j) % 15] for j in range(3 + i * 7 % 23))
        return Message("user", question), Message("assistant", words[i % 15])

    return [Example(messages=said(i), key=f"e{i}") for i in range(n)]


OPTIONS = {"tokens": 2000, "row_tokens": 128, "rows": 3, "shard_tokens": 300, "max_tokens": 100, "dtype": "float32"}


def test_what_is_stored_is_what_the_model_computes_one_by_one(model):
    acts = rb.harvest(model, examples(), **OPTIONS)
    assert acts.sites == model.info.sites
    assert len(acts.shards) >= 3
    for site in (Site("embed"), Site("attn_out", 1), Site("resid", 2), Site("final")):
        stored = torch.cat([acts.read(site, i) for i in range(len(acts.shards))])
        for index, span in acts.table.spans():
            ids = acts.table.ids[span]
            batch = TokenBatch.pad(model.tokenize([examples()[index]], max_tokens=100))
            assert torch.equal(batch.ids[0, :len(ids)], ids)
            alone = model.forward(batch, capture=[site], logits="none").sites[site][0, :len(ids)]
            assert float((stored[span] - alone).abs().max()) <= 1e-5 * float(alone.abs().max())


def test_moments_count_each_beginning_once_and_not_position_0(model):
    acts = rb.harvest(model, examples(), **OPTIONS)
    site = Site("resid", 1)
    new = (acts.table.positions > 0) & ~acts.table.repeats
    x = torch.cat([acts.read(site, i) for i in range(len(acts.shards))])[new].double()
    assert acts.stats.count == len(x)
    assert torch.allclose(acts.stats.mean[site], x.mean(0), atol=1e-6)
    assert acts.stats.variance(site) == pytest.approx(float((x - x.mean(0)).square().sum(1).mean()), rel=1e-5)


def test_held_out_sequences_are_others(model):
    acts = rb.harvest(model, examples(), **OPTIONS, held_out=0.25)
    train, held = ({s.key for s in acts.sequences(split)} for split in ("train", "held-out"))
    assert not train & held
    assert len(held) == pytest.approx(0.25 * (len(train) + len(held)), abs=1)
    with pytest.raises(DataError, match="no held-out tokens"):
        rb.harvest(model, examples(), **OPTIONS, held_out=0).sequences("held-out")


def test_what_a_held_out_sequence_shares_with_training_is_known(model):
    acts = rb.harvest(model, examples(), **OPTIONS, held_out=0.25)
    known = [s.ids.tolist() for s in acts.sequences("train")]
    sequences = acts.sequences("held-out")
    shared = []
    for sequence, new in zip(sequences, acts.unseen(sequences), strict=True):
        ids = sequence.ids.tolist()
        want = [all(k[:t + 1] != ids[:t + 1] for k in known) for t in range(len(ids))]
        assert new.tolist() == want
        shared.append(want.count(False))
    assert min(shared) >= 3  # every dialogue begins with the template
    assert not any(bool(new.any()) for new in acts.unseen(acts.sequences("train")))


def test_repeated_beginnings_are_found_and_repeat_the_same_activations(model):
    acts = rb.harvest(model, examples(), **OPTIONS, held_out=0)
    rows = torch.cat([acts.read(Site("resid", 1), i) for i in range(len(acts.shards))])
    earlier: dict[tuple, int] = {}
    found = []
    for _, span in acts.table.spans():
        ids = acts.table.ids[span].tolist()
        begins = [tuple(ids[:t + 1]) for t in range(len(ids))]
        for at, begin in zip(range(span.start, span.stop), begins, strict=True):
            found.append(len(begin) > 1 and begin in earlier)
            if begin in earlier:
                assert torch.allclose(rows[at], rows[earlier[begin]], atol=1e-5)
        for at, begin in zip(range(span.start, span.stop), begins, strict=True):
            earlier.setdefault(begin, at)
    assert acts.table.repeats.tolist() == found
    assert 100 < sum(found) < len(found)


def test_the_token_budget_is_kept(model):
    acts = rb.harvest(model, examples(), **{**OPTIONS, "tokens": 517})
    assert len(acts.table) + len(acts.held) == 517


def test_activations_save_load_and_notice_damage(model, tmp_path):
    acts = rb.harvest(model, examples(), **OPTIONS, folder=tmp_path / "work")
    back = rb.load(rb.save(acts, tmp_path / "acts-0"))
    site = Site("mlp_out", 2)
    assert torch.equal(back.read(site, 1), acts.read(site, 1))
    assert back.stats.power == acts.stats.power
    assert torch.equal(back.table.flags["special"], acts.table.flags["special"])
    path = tmp_path / "acts-0" / "shards" / "shard-00001.safetensors"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.unlink()
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"(?s)shard-00001\.safetensors.*damaged"):
        rb.load(tmp_path / "acts-0")


def test_finished_shards_are_not_computed_again(model, tmp_path, monkeypatch):
    calm = rb.harvest(model, examples(), **OPTIONS, folder=tmp_path / "calm")
    real, calls = harvesting.write_tensors, []

    def dies(path, tensors):
        calls.append(path)
        if len(calls) == 5:
            raise KeyboardInterrupt
        real(path, tensors)

    monkeypatch.setattr(harvesting, "write_tensors", dies)
    with pytest.raises(KeyboardInterrupt):
        rb.harvest(model, examples(), **OPTIONS, folder=tmp_path / "broken")
    monkeypatch.setattr(harvesting, "write_tensors", real)
    forwards = []
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, *a, **k: forwards.append(1) or forward(self, *a, **k))
    again = rb.harvest(model, examples(), **OPTIONS, folder=tmp_path / "broken")
    assert 0 < len(forwards) < len(calm.shards) * 3
    assert again.facts() == calm.facts()
    for name, path in calm.files().items():
        assert path.read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_nan_names_the_site_and_the_sequence(checkpoint):
    sick = rb.create("model", "llama", checkpoint=str(checkpoint))
    with torch.no_grad():
        sick.parameters()["model.layers.1.mlp.down_proj.weight"][3, 3] = float("nan")
    with pytest.raises(NumericsError, match=r"mlp_out\.1: activations are NaN or infinite in sequence \d+ \('e\d+'\)"):
        rb.harvest(sick, examples(), **OPTIONS)


def test_an_empty_corpus_is_said(model):
    with pytest.raises(DataError, match="gave no example"):
        rb.harvest(model, [], **OPTIONS)


def test_unknown_sites_are_said(model):
    with pytest.raises(SiteError, match="unknown site 'residual'"):
        rb.harvest(model, examples(), sites="residual", **OPTIONS)
    with pytest.raises(SiteError, match=r"3 layers of 'resid' \(0 to 2\)"):
        rb.harvest(model, examples(), sites=["resid.3"], **OPTIONS)


PIPELINE = """
reprbasis: 1
name: tiny
model: {{use: llama, checkpoint: {checkpoint}}}
steps:
  acts: {{do: harvest, corpus: {{use: chat, path: {corpus}, generate: true, max_new: 6, batch: 8}}, tokens: 4000, row_tokens: 128,
         rows: 2, shard_tokens: 200, sites: ["resid.*", embed]}}
  basis: {{do: learn, from: {{activations: acts}}, learner: {{use: jumprelu, width: 64}}, rows: 256000, batch: 128,
          checkpoint_seconds: 0.1}}
  eval: {{do: evaluate, from: {{basis: basis, activations: acts}},
         evaluators: [{{use: reconstruction, tokens: 600, together: "resid.*", per_site: [resid.1], per_site_rows: 2000}},
                      {{use: atlas, tokens: 512, features: 10, control_tokens: 64}}]}}
"""


def write_pipeline(folder: Path, checkpoint: Path) -> Path:
    folder.mkdir(exist_ok=True)
    corpus = folder / "chat.jsonl"
    corpus.write_text("".join(json.dumps({"messages": [{"role": "user", "content": e.messages[0].content}]}) + "\n"
                              for e in examples(80)))
    path = folder / "tiny.yaml"
    path.write_text(PIPELINE.format(checkpoint=checkpoint, corpus=corpus))
    return path


def start(path, runs):
    command = [sys.executable, "-m", "reprbasis", "run", str(path), "--runs", str(runs), "--until", "basis"]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_runs_killed_in_harvest_and_learn_end_with_the_same_bytes(tmp_path, checkpoint):
    path = write_pipeline(tmp_path / "p", checkpoint)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    process = start(path, calm)
    output = process.communicate()[0].decode()
    assert process.returncode == 0, output
    marks = ["tiny/.work/acts-*/answers-*.json", "tiny/.work/acts-*/shards/*.json", "tiny/.work/acts-*/shards/shard-00004.json",
             "tiny/.work/basis-*/checkpoint/state.json"]
    seen = []
    for mark in marks:
        process = start(path, killed)
        while process.poll() is None and not list(killed.glob(mark)):
            time.sleep(0.005)
        if process.poll() is None:
            seen.append(mark)
            process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(seen) >= 3
    process = start(path, killed)
    output = process.communicate()[0].decode()
    assert process.returncode == 0, output
    names = sorted(str(p.relative_to(calm)) for p in calm.rglob("*.safetensors"))
    assert names == sorted(str(p.relative_to(killed)) for p in killed.rglob("*.safetensors"))
    assert len(names) > 5
    for name in names:
        assert (calm / name).read_bytes() == (killed / name).read_bytes(), name


def test_the_whole_pipeline_gives_findings_with_controls(tmp_path, checkpoint):
    from reprbasis.pipeline.run import run
    from reprbasis.pipeline.spec import read

    spec = read(write_pipeline(tmp_path / "p", checkpoint), ["steps.basis.rows=64000", "report=[html]"])
    record = run(spec, rb.registry(), runs=tmp_path)
    findings = rb.load(record.steps[-1].folder)
    for site in ("embed", "resid.0", "resid.1", "resid.2"):
        fvu = {c: findings.get("fvu", condition=c, site=site) for c in ("global", "untrained", "random")}
        assert fvu["global"].value < min(fvu["untrained"].value, fvu["random"].value)
        assert all(m.low <= m.value <= m.high and m.n > 100 for m in fvu.values())
        for condition in ("global", "untrained"):
            assert findings.get("ce_recovered", condition=condition, site=site).n > 100
    assert findings.get("l0", condition="per-site", site="resid.1").value > 0
    assert findings.get("kl", condition="mean", site="all resid.*").value > 0
    assert len(findings.features) == 10
    assert (tmp_path / "tiny" / "report.html").stat().st_size > 10_000
