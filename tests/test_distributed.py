"""Several processes do what one does: under torchrun (gloo, 2 processes) results agree, and a lost process ends the run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ALONE = [sys.executable]
PIPELINE = """
reprbasis: 1
name: tiny
model: {{use: llama, checkpoint: {checkpoint}}}
steps:
  acts: {{do: harvest, corpus: {{use: chat, path: {corpus}, generate: true, max_new: 6, batch: 8}}, tokens: 2000,
         row_tokens: 128, rows: 2, shard_tokens: 200, sites: ["resid.*", embed]}}
  basis: {{do: learn, from: {{activations: acts}}, learner: {{use: jumprelu, width: 64}}, rows: 48000, batch: 128,
          shards: {shards}, checkpoint_seconds: 0.2}}
  eval: {{do: evaluate, from: {{basis: basis, activations: acts}},
         evaluators: [{{use: reconstruction, tokens: 300, together: "resid.*", per_site: [resid.1], per_site_rows: 1000}}]}}
"""


def start(launcher, *command):
    return subprocess.Popen([*launcher, *map(str, command)], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def pipeline(folder, checkpoint, shards=1):
    folder.mkdir(exist_ok=True)
    path = folder / f"tiny-{shards}.yaml"
    corpus = folder / "chat.jsonl"
    corpus.write_text("".join(json.dumps({"messages": [{"role": "user", "content": f"Say {i}."}]}) + "\n" for i in range(60)))
    path.write_text(PIPELINE.format(checkpoint=checkpoint, corpus=corpus, shards=shards))
    return path


def run(launcher, path, runs, *more):
    process = start(launcher, "-m", "reprbasis", "run", path, "--runs", runs, *more)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def tensors(runs, step):
    found = {}
    for path in sorted(Path(runs).glob(f"tiny/{step}-*/**/*.safetensors")):
        found |= {f"{path.name}/{name}": value for name, value in load_file(path).items()}
    assert found
    return found


def test_every_learner_learns_the_same_with_rows_or_latents_divided(tmp_path):
    process = start(TORCHRUN, Path(__file__).with_name("distributed_worker.py"), tmp_path / "found.json")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    found = json.loads((tmp_path / "found.json").read_text())
    assert "cannot be divided over 2 processes" in found.pop("matryoshka latents")
    assert found.pop("largest there") == 96  # of 192 latents: with latents divided, no device holds more than its half
    assert len(found) == 19
    for name, result in found.items():
        assert result["tensors"] < 5e-6, name  # float32, 50 steps
        assert result["history"] < 1e-4, name
        assert result["same"], name
        assert result["dead"] > 0.2 or name.split()[0] in ("relu", "gated"), name  # the terms for dead latents took part


@pytest.mark.parametrize("shards", [1, 2])
def test_a_pipeline_under_torchrun_gives_what_one_process_gives(tmp_path, checkpoint, shards):
    path = pipeline(tmp_path / "p", checkpoint, shards)
    alone = tmp_path / "alone"
    run(ALONE, path, alone, "--set", "steps.basis.shards=1", "--until", "basis")
    together = tmp_path / "together"
    output = run(TORCHRUN, path, together)
    assert len(re.findall(r"^eval +.* done ", output, re.MULTILINE)) == 1, output  # one process reports
    assert output.count("loading the model") == 1
    for name, value in tensors(alone, "acts").items():
        assert value.equal(tensors(together, "acts")[name]), name  # harvest: bit for bit
    others = tensors(together, "basis")
    for name, value in tensors(alone, "basis").items():
        assert (value.double() - others[name].double()).abs().max() < 1e-4, name
    record = json.loads((together / "tiny" / "run.json").read_text())
    assert [s["status"] for s in record["steps"]] == ["done", "done", "done"]


def test_a_killed_process_ends_the_run_and_any_number_of_processes_resumes_it(tmp_path, checkpoint):
    path = pipeline(tmp_path / "p", checkpoint, 2)
    runs = tmp_path / "killed"
    process = start(TORCHRUN, "-m", "reprbasis", "run", path, "--runs", runs, "--until", "basis")
    while process.poll() is None and not list(runs.glob("tiny/.work/basis-*/checkpoint/state.json")):
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode != 0
    assert re.search(r"another process (of this run )?has ended", output), output
    assert "run the same command again: it resumes" in output
    assert not re.search(r'File ".*reprbasis', output), output  # torchrun's own traceback aside
    again = run(ALONE, path, runs, "--set", "steps.basis.shards=1", "--until", "basis")
    assert again
    alone = tmp_path / "alone"
    run(ALONE, path, alone, "--set", "steps.basis.shards=1", "--until", "basis")
    assert all(value.equal(tensors(runs, "acts")[name]) for name, value in tensors(alone, "acts").items())
