"""A distribution by somebody else: installed by pip, chosen by name, trained, saved, loaded elsewhere. No edit of the core."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from reprbasis.artifacts.store import read_tensors, write_tensors

EXAMPLE = Path(__file__).parents[1] / "examples" / "third_party_sae"
PROJECT = EXAMPLE / "reprbasis-soft-topk"
EDITED = {"reprbasis_soft_topk/config.py", "reprbasis_soft_topk/learner.py"}
SMALL = {"steps.acts.tokens": 700, "steps.acts.sites": "resid.*", "steps.acts.max_tokens": 64,
         **{f"steps.{s}.{key}": value for s in ("soft", "topk")
            for key, value in (("rows", 3200), ("batch", 64), ("learner.width", 48), ("learner.k", 6))},
         **{f"steps.eval-{s}.evaluators.0.tokens": 64 for s in ("soft", "topk")}}


@pytest.fixture(scope="module")
def site(pip_install):
    return pip_install(PROJECT)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from transformers import LlamaConfig

    from reprbasis.testing.models import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("model"), LlamaConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=320, max_position_embeddings=256))


@pytest.fixture(scope="module")
def trained(python, site, checkpoint, tmp_path_factory):
    """The folder of the basis that the example's pipeline learns, on a tiny model."""
    runs = tmp_path_factory.mktemp("runs")
    changes = {"model.checkpoint": checkpoint, **SMALL}
    done = python("-m", "reprbasis", "run", EXAMPLE / "pipeline.yaml", "--runs", runs,
               *(part for key, value in changes.items() for part in ("--set", f"{key}={value}")), site=site)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = python("-m", "reprbasis", "show", runs / "third-party-sae", "--json", site=site)
    steps = {s["name"]: s for s in json.loads(shown.stdout)["steps"]}
    assert {s["status"] for s in steps.values()} == {"done"}
    return Path(steps["soft"]["folder"])


def test_only_two_files_differ_from_what_new_wrote(written_by_new):
    """The README's own command writes everything else, to the byte."""
    fresh = written_by_new(EXAMPLE, PROJECT)
    here = {name: (PROJECT / name).read_bytes() for name in fresh}
    assert {name for name in fresh if fresh[name] != here[name]} == EDITED
    extra = {str(p.relative_to(PROJECT)) for p in PROJECT.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert extra == set(fresh)


def test_it_is_found_by_its_entry_point_alone(python, site):
    done = python("-m", "reprbasis", "plugins", "show", "learner:soft-topk", "--json", site=site)
    assert json.loads(done.stdout)[0]["full_name"] == "reprbasis-soft-topk/soft-topk"
    missing = python("-m", "reprbasis", "check", EXAMPLE / "pipeline.yaml")
    assert missing.returncode == 2
    assert "there is no learner 'soft-topk'" in missing.stderr


def test_it_passes_its_conformance_suite(python, site, tmp_path):
    done = python("-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", PROJECT / "tests", site=site,
               cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_yaml_chooses_it_by_name():
    steps = yaml.safe_load((EXAMPLE / "pipeline.yaml").read_text())["steps"]
    assert steps["soft"]["learner"]["use"] == "soft-topk"
    assert "soft_topk" not in (EXAMPLE / "pipeline.yaml").read_text()


LOAD = """
import sys, torch, reprbasis
from reprbasis.artifacts.store import read_tensors, write_tensors
basis = reprbasis.load(sys.argv[1])
x = read_tensors(sys.argv[2] + "/x.safetensors")["x"]
site = basis.sites[1]
z = basis.encode(site, x)
write_tensors(__import__("pathlib").Path(sys.argv[2]) / "out.safetensors", {"z": z, "y": basis.decode(site, z)})
print(basis.learner.full_name)
"""


def test_a_fresh_process_loads_what_was_trained(python, trained, site, tmp_path):
    """Codes and reconstructions are those of the formula, worked out here from the tensors on disk."""
    x = 2 * torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    write_tensors(tmp_path / "x.safetensors", {"x": x})
    done = python("-c", LOAD, trained, tmp_path, site=site)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "reprbasis-soft-topk/soft-topk"
    out, t = read_tensors(tmp_path / "out.safetensors"), read_tensors(trained / "tensors.safetensors")
    mean, scale = t["normaliser/mean"][1], t["normaliser/scale"][1]
    w = {name: t[f"dictionary/{name}"] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    h = (x - mean) * scale @ w["W_enc"].T + w["b_enc"]
    codes = (h - h.sort(dim=1, descending=True).values[:, 6:7].clamp_min(0)).clamp_min(0)
    assert int((codes > 0).sum(1).max()) == 6
    assert torch.allclose(out["z"], codes, atol=1e-5)
    assert torch.allclose(out["y"], (codes @ w["W_dec"] + w["b_dec"]) / scale + mean, atol=1e-4)


def test_without_the_distribution_loading_names_it(python, trained, tmp_path):
    done = python("-c", LOAD, trained, tmp_path)
    assert done.returncode != 0
    assert "reprbasis-soft-topk" in done.stderr
