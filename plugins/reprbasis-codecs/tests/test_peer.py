"""Against the libraries themselves: they load what is exported here, and what SAELens trains now loads here.

Each test runs where its library is installed; `make test-peers` installs them all.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import reprbasis as rb
from reprbasis.artifacts.store import read_tensors
from reprbasis.sites import Site

pytestmark = pytest.mark.peer
ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "gated": "gated"}


def installed(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed: make test-peers")


def compare(basis, site, x, encode, decode, *, atol=1e-5):
    """Codes and reconstruction, absolute."""
    z = basis.encode(site, x)
    assert 0 < int((z != 0).sum()) < z.numel()
    with torch.no_grad():
        theirs = encode(x)
        assert float((theirs - z).abs().max()) <= atol
        assert torch.equal(theirs != 0, z != 0)
        assert float((decode(theirs) - basis.decode(site, z)).abs().max()) <= atol


def raw_rows(basis, site):
    x = torch.randn(128, basis.d_in, generator=torch.Generator().manual_seed(3))
    return basis.normaliser.invert(x, basis.index(site))


@pytest.fixture
def spread(make_basis):
    """A basis over sites of ordinary scales."""
    def make(kind, normaliser="affine"):
        basis = make_basis(kind, normaliser=normaliser, sites=(Site("resid", 0), Site("attn_out", 3), Site("final")))
        if normaliser == "affine":
            basis.normaliser.scale.copy_(torch.tensor([0.5, 1.7, 6.0]))
        return basis

    return make


@pytest.fixture
def script(monkeypatch):
    """The script that wrote the checkpoints of the default suite."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    spec = importlib.util.spec_from_file_location("make_data", Path(__file__).with_name("make_data.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@installed("sae_lens")
@pytest.mark.parametrize("normaliser", ["affine", "none"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_saelens_loads_what_is_exported(kind, normaliser, spread, tmp_path):
    """One checkpoint per site; with `none` the decoder bias stays out of the input (apply_b_dec_to_input false)."""
    from sae_lens import SAE

    basis = spread(kind, normaliser)
    for site, folder in zip(basis.sites, rb.export(basis, "saelens", tmp_path / "out"), strict=True):
        sae = SAE.load_from_disk(folder)
        assert sae.cfg.architecture() == ARCHITECTURES[kind]
        assert sae.cfg.apply_b_dec_to_input == (normaliser == "affine")
        assert sae.cfg.metadata.hook_name == {"resid.0": "blocks.0.hook_resid_post", "attn_out.3": "blocks.3.hook_attn_out",
                                              "final": "unembed.hook_in"}[str(site)]
        compare(basis, site, raw_rows(basis, site), sae.encode, sae.decode)


@installed("sae_lens")
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_key_sets_and_shapes_are_those_of_saelens(kind, make_basis, tmp_path):
    from sae_lens import SAE

    folder, = rb.export(make_basis(kind, sites=(Site("resid", 0),)), "saelens", tmp_path / "out")
    SAE.load_from_disk(folder).save_model(tmp_path / "theirs")
    ours, theirs = (read_tensors(f / "sae_weights.safetensors") for f in (folder, tmp_path / "theirs"))
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert rb.import_(tmp_path / "theirs").sites == (Site("resid", 0),)


@installed("sae_lens")
def test_what_saelens_trains_now_loads_here(tmp_path, monkeypatch, script):
    from sae_lens import SAE

    monkeypatch.setattr(script, "DATA", tmp_path)
    script.saelens()
    found = sorted(p for p in (tmp_path / "saelens").iterdir() if p.is_dir())
    assert len(found) == 10
    x = script.rows(64, 5)
    for folder in found:
        basis = rb.import_(folder, "saelens")
        if "training" in folder.name or "checkpoint" in folder.name:
            continue
        back, = rb.export(basis, "saelens", folder / "back")
        for source in (folder, back):
            sae = SAE.load_from_disk(source)
            compare(basis, basis.sites[0], x, sae.encode, sae.decode)


@installed("dictionary_learning")
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_dictionary_learning_loads_what_is_exported(kind, spread, tmp_path, script):
    """After the one command that makes its pickle."""
    base, top = script.bare("dictionary_learning", "dictionary", "trainers.top_k")
    classes = {"relu": base.AutoEncoder, "gated": base.GatedAutoEncoder, "jumprelu": base.JumpReluAutoEncoder,
               "topk": top.AutoEncoderTopK}
    basis = spread(kind)
    for site, folder in zip(basis.sites, rb.export(basis, "dictionary-learning", tmp_path / "out"), strict=True):
        torch.save(load_file(folder / "ae.safetensors"), folder / "ae.pt")
        assert json.loads((folder / "config.json").read_text())["trainer"]["dict_class"] == classes[kind].__name__
        options = {"normalize_decoder": False} if kind == "relu" else {}
        ae = classes[kind].from_pretrained(folder / "ae.pt", **options)
        compare(basis, site, raw_rows(basis, site), ae.encode, ae.decode)


@installed("sparsify")
def test_sparsify_loads_what_is_exported(spread, tmp_path, script):
    _, coder = script.bare("sparsify", "config", "sparse_coder")
    basis = spread("topk")
    for site, folder in zip(basis.sites, rb.export(basis, "sparsify", tmp_path / "out"), strict=True):
        sae = coder.SparseCoder.load_from_disk(folder)

        def encode(x, sae=sae):
            found = sae.encode(x)
            return torch.zeros(len(x), basis.d_dict).scatter_(1, found.top_indices, found.top_acts)

        compare(basis, site, raw_rows(basis, site), encode, lambda z, sae=sae: z @ sae.W_dec + sae.b_dec)


@installed("llamascopium")
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_llamascopium_loads_what_is_exported(kind, spread, tmp_path, script):
    script.bare("llamascopium")
    module, = script.bare("llamascopium.models", "sae")
    basis = spread(kind)
    for site, folder in zip(basis.sites, rb.export(basis, "llamascopium", tmp_path / "out"), strict=True):
        sae = module.SparseAutoEncoder.from_local(str(folder))
        compare(basis, site, raw_rows(basis, site), sae.encode, sae.decode)
