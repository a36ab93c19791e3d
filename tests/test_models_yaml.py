"""One pipeline, several models: only `model:` differs."""

import json
from pathlib import Path

import pytest

from reprbasis.artifacts.store import read_tensors
from reprbasis.cli.main import main

ROOT = Path(__file__).parents[1]
SMALL = {"steps.acts.tokens": 600, "steps.acts.max_tokens": 48, "steps.basis.rows": 4000, "steps.basis.batch": 100,
         "steps.basis.learner.width": 64, "steps.basis.learner.target_l0": 6, "steps.eval.evaluators.0.tokens": 64,
         "steps.eval.evaluators.1.tokens": 128,
         "steps.eval.evaluators.1.features": 8, "report": "[html]"}
MODELS = {
    "tiny-qwen3": ("{use: qwen, checkpoint: tiny-qwen3}", 4),
    "tiny-llava": ("{use: lvlm, checkpoint: tiny-llava}", 4),
    "smollm2": ("{use: llama, checkpoint: smollm2-135m-instruct}", 30),
}


@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-llava", pytest.param("smollm2", marks=pytest.mark.real)])
def test_the_same_pipeline_runs_on(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    model, layers = MODELS[name]
    changes = {"model": model, **SMALL}
    assert main(["run", "examples/qwen3.yaml", "--until", "eval", "--runs", str(tmp_path),
                 *(part for key, value in changes.items() for part in ("--set", f"{key}={value}"))]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["show", str(tmp_path / "qwen3"), "--json"]) == 0
    steps = {s["name"]: s for s in json.loads(capsys.readouterr().out)["steps"]}
    assert {steps[name]["status"] for name in ("acts", "basis", "eval")} == {"done"}
    means = read_tensors(Path(steps["basis"]["folder"]) / "tensors.safetensors")["normaliser/mean"]
    assert len(means) == 3 * layers + 2, "a site for the embedding, three a layer, and the last"
