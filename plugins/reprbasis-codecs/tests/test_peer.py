"""Against SAELens itself: it loads what is exported here, and what it trains now loads here. Runs where sae-lens is installed."""

import importlib.util
from pathlib import Path

import pytest
import torch

import reprbasis as rb
from reprbasis.sites import Site

pytestmark = pytest.mark.peer
sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed: make test-peers")

ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "gated": "gated"}


def compare(basis, site, x, sae, *, atol=1e-5):
    """Codes and reconstruction, absolute."""
    z = basis.encode(site, x)
    assert 0 < int((z != 0).sum()) < z.numel()
    with torch.no_grad():
        theirs = sae.encode(x)
        assert float((theirs - z).abs().max()) <= atol
        assert torch.equal(theirs != 0, z != 0)
        assert float((sae(x) - basis.decode(site, z)).abs().max()) <= atol


@pytest.mark.parametrize("normaliser", ["affine", "none"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_saelens_loads_what_is_exported(kind, normaliser, make_basis, tmp_path):
    """One checkpoint per site; with `none` the decoder bias stays out of the input (apply_b_dec_to_input false)."""
    basis = make_basis(kind, normaliser=normaliser, sites=(Site("resid", 0), Site("attn_out", 3), Site("final")))
    if normaliser == "affine":
        basis.normaliser.scale.copy_(torch.tensor([0.5, 1.7, 6.0]))
    for site, folder in zip(basis.sites, rb.export(basis, "saelens", tmp_path / "out"), strict=True):
        sae = sae_lens.SAE.load_from_disk(folder)
        assert sae.cfg.architecture() == ARCHITECTURES[kind]
        assert sae.cfg.apply_b_dec_to_input == (normaliser == "affine")
        assert sae.cfg.metadata.hook_name == {"resid.0": "blocks.0.hook_resid_post", "attn_out.3": "blocks.3.hook_attn_out",
                                              "final": "unembed.hook_in"}[str(site)]
        x = basis.normaliser.invert(torch.randn(128, basis.d_in, generator=torch.Generator().manual_seed(3)), basis.index(site))
        compare(basis, site, x, sae)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_key_sets_and_shapes_are_those_of_saelens(kind, make_basis, tmp_path):
    folder, = rb.export(make_basis(kind, sites=(Site("resid", 0),)), "saelens", tmp_path / "out")
    sae = sae_lens.SAE.load_from_disk(folder)
    sae.save_model(tmp_path / "theirs")
    from reprbasis.artifacts.store import read_tensors

    ours, theirs = (read_tensors(f / "sae_weights.safetensors") for f in (folder, tmp_path / "theirs"))
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    again = rb.import_(tmp_path / "theirs")
    assert again.sites == (Site("resid", 0),)


def test_what_saelens_trains_now_loads_here(tmp_path, monkeypatch):
    """The script that wrote the checkpoints of the default suite, run again."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    spec = importlib.util.spec_from_file_location("make_data", Path(__file__).with_name("make_data.py"))
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "DATA", tmp_path)
    script.saelens()
    found = sorted(p for p in (tmp_path / "saelens").iterdir() if p.is_dir())
    assert len(found) == 10
    x = script.rows(64, 5)
    for folder in found:
        basis = rb.import_(folder, "saelens")
        if "training" in folder.name or "checkpoint" in folder.name:
            continue
        compare(basis, basis.sites[0], x, sae_lens.SAE.load_from_disk(folder))
        back, = rb.export(basis, "saelens", folder / "back")
        compare(basis, basis.sites[0], x, sae_lens.SAE.load_from_disk(back))
