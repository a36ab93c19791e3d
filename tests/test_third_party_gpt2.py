"""A model family by somebody else: one table, installed by pip, chosen by name, through a whole pipeline. No edit of the core."""

import json
from pathlib import Path

import pytest

from reprbasis.testing.models import tiny_checkpoint, tiny_config

EXAMPLE = Path(__file__).parents[1] / "examples" / "third_party_gpt2"
PROJECT = EXAMPLE / "reprbasis-gpt2"


@pytest.fixture(scope="module")
def site(pip_install):
    return pip_install(PROJECT)


def test_only_the_table_differs_from_what_new_wrote(written_by_new):
    fresh = written_by_new(EXAMPLE, PROJECT)
    assert {name for name in fresh if fresh[name] != (PROJECT / name).read_bytes()} == {"reprbasis_gpt2/model.py"}
    extra = {str(p.relative_to(PROJECT)) for p in PROJECT.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert extra == set(fresh)


def test_it_passes_its_conformance_suite(python, site, tmp_path):
    done = python("-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", PROJECT / "tests", site=site,
                  cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_its_pipeline_runs(python, site, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "model", tiny_config("gpt2"))
    changes = {"model.checkpoint": checkpoint, "steps.acts.tokens": 700, "steps.acts.sites": "resid.*",
               "steps.acts.max_tokens": 64, "steps.basis.rows": 3200, "steps.basis.batch": 64,
               "steps.basis.learner.width": 48, "steps.basis.learner.k": 6, "steps.eval.evaluators.0.tokens": 64}
    done = python("-m", "reprbasis", "run", EXAMPLE / "pipeline.yaml", "--runs", tmp_path / "runs",
                  *(part for key, value in changes.items() for part in ("--set", f"{key}={value}")), site=site,
                  cwd=EXAMPLE.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    shown = python("-m", "reprbasis", "show", tmp_path / "runs" / "third-party-gpt2", "--json", site=site)
    assert {s["name"]: s["status"] for s in json.loads(shown.stdout)["steps"]} == dict.fromkeys(("acts", "basis", "eval"), "done")
