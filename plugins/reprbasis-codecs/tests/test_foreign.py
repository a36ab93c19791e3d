"""Checkpoints that the real libraries wrote: the same codes and reconstructions here, and the same tensors when written back."""

import json
import math

import pytest
import torch
from safetensors import safe_open

import reprbasis as rb
from reprbasis.artifacts.store import read_tensors
from reprbasis.errors import UserError
from reprbasis.sites import Site

FORMATS = {"saelens": "saelens", "dictionary_learning": "dictionary-learning", "sparsify": "sparsify",
           "llamascopium": "llamascopium"}


def agree(basis, expected, atol=1e-5):
    x, site = expected["x"], basis.sites[0]
    z = basis.encode(site, x)
    assert (expected["codes"] != 0).any()
    assert (expected["codes"] == 0).any()
    torch.testing.assert_close(z, expected["codes"], rtol=0, atol=atol)
    torch.testing.assert_close(basis.decode(site, z), expected["reconstruction"], rtol=0, atol=atol)
    assert torch.equal(z != 0, expected["codes"] != 0)


def back(basis, folder, format, tmp_path):
    """What is written back: the file, as (config, tensors, basis)."""
    out, = rb.export(basis, format, tmp_path / "back")
    files = {p.suffix: p for p in out.iterdir()}
    return json.loads(files[".json"].read_text()), read_tensors(files[".safetensors"]), rb.import_(out, format)


def weights(folder):
    file, = (p for p in folder.glob("*.safetensors") if p.name != "expected.safetensors")
    return read_tensors(file)


def test_saelens_agrees(written_by_saelens, expected):
    known, made = expected(written_by_saelens)
    assert made["version"] == "6.54.12"
    basis = rb.import_(written_by_saelens, "saelens")
    agree(basis, known)
    config = json.loads((written_by_saelens / "cfg.json").read_text())
    assert str(basis.sites[0]) == "resid." + config["metadata"]["hook_name"].split(".")[1]


def test_saelens_goes_back(written_by_saelens, expected, tmp_path):
    """Inference checkpoints come back with the bytes of every tensor; training forms as inference forms that agree."""
    basis = rb.import_(written_by_saelens, "saelens")
    config, tensors, again = back(basis, written_by_saelens, "saelens", tmp_path)
    agree(again, expected(written_by_saelens)[0])
    before, old = json.loads((written_by_saelens / "cfg.json").read_text()), weights(written_by_saelens)
    kept = config["metadata"]
    assert {k: v for k, v in kept.items() if k != "reprbasis"}.items() >= before["metadata"].items()
    if "training" in written_by_saelens.name or "checkpoint" in written_by_saelens.name:
        return
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in old.items()}
    assert [n for n in old if not torch.equal(tensors[n], old[n])] == []
    same = ("d_in", "d_sae", "architecture", "apply_b_dec_to_input", "normalize_activations", "reshape_activations", "dtype")
    assert {k: config[k] for k in same} == {k: before[k] for k in same}


def test_dictionary_learning_agrees(written_by_dictionary_learning, expected):
    basis = rb.import_(written_by_dictionary_learning, "dictionary-learning")
    agree(basis, expected(written_by_dictionary_learning)[0])
    config = json.loads((written_by_dictionary_learning / "config.json").read_text())
    assert basis.sites == (Site("resid", config["trainer"]["layer"]),)


def test_dictionary_learning_goes_back_to_the_bit(written_by_dictionary_learning, tmp_path):
    basis = rb.import_(written_by_dictionary_learning, "dictionary-learning")
    config, tensors, _ = back(basis, written_by_dictionary_learning, "dictionary-learning", tmp_path)
    old = weights(written_by_dictionary_learning)
    assert {n: (t.shape, t.dtype) for n, t in tensors.items()} == {n: (t.shape, t.dtype) for n, t in old.items()}
    assert [n for n in old if not torch.equal(tensors[n], old[n])] == []
    del config["reprbasis"]
    assert config == json.loads((written_by_dictionary_learning / "config.json").read_text())


def test_sparsify_agrees_and_goes_back_to_the_bit(written_by_sparsify, expected, tmp_path):
    basis = rb.import_(written_by_sparsify, "sparsify")
    agree(basis, expected(written_by_sparsify)[0])
    assert str(basis.sites[0]) == {"layers.10": "resid.10", "layers.3.mlp": "mlp_out.3"}[written_by_sparsify.name]
    config, tensors, _ = back(basis, written_by_sparsify, "sparsify", tmp_path)
    old = weights(written_by_sparsify)
    assert old["W_dec"].shape == (64, 16)  # rows are directions: [K, D]
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in old.items()}
    assert [n for n in old if not torch.equal(tensors[n], old[n])] == []
    assert config.items() >= json.loads((written_by_sparsify / "cfg.json").read_text()).items()
    assert [p.name for p in (tmp_path / "back").iterdir()] == [written_by_sparsify.name]


def test_llamascopium_agrees(written_by_llamascopium, expected, tmp_path):
    """Codes of topk come in units of the decoder norm (see the documentation); everything else is the same."""
    basis, (known, _) = rb.import_(written_by_llamascopium, "llamascopium"), expected(written_by_llamascopium)
    old = weights(written_by_llamascopium)
    if written_by_llamascopium.name == "topk":
        known["codes"] = known["codes"] * torch.linalg.vector_norm(old["W_D"], dim=1)
    agree(basis, known)
    config, tensors, again = back(basis, written_by_llamascopium, "llamascopium", tmp_path)
    agree(again, known)
    assert config["hook_point_in"] == json.loads((written_by_llamascopium / "config.json").read_text())["hook_point_in"]
    assert {n for n in old if not n.startswith("dataset_average")} == set(tensors)
    assert int(config["d_model"] * config["expansion_factor"]) == basis.d_dict


def test_an_import_is_saved_and_loaded(tmp_path, written_by_saelens):
    basis = rb.import_(written_by_saelens)
    again = rb.load(rb.save(basis, tmp_path / "basis"))
    assert all(torch.equal(t, again.tensors()[n]) for n, t in basis.tensors().items())
    assert again.details["imported"]["format"] == "reprbasis-codecs/saelens"


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE", "GatedAutoEncoder", "AutoEncoder"])
def test_another_dictionary_in_an_imported_basis(name, make_basis, tmp_path):
    """It is written as what it is, not as what the basis once was."""
    from pathlib import Path

    basis = rb.import_(Path(__file__).parent / "data" / "dictionary_learning" / name)
    other = make_basis("jumprelu", d=basis.d_in, k=32)
    changed = basis.with_dictionary(other.dictionary)
    folder, = rb.export(changed, "dictionary-learning", tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["trainer"]["dict_class"] == "JumpReluAutoEncoder"
    site, x = basis.sites[0], torch.randn(50, basis.d_in, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rb.import_(folder).encode(site, x), changed.encode(site, x), rtol=0, atol=1e-5)


def test_half_precision_loses_nothing_on_import(tmp_path, make_basis):
    out, = rb.export(make_basis("relu", sites=(Site("resid", 3),)), "saelens", tmp_path / "out", dtype="bfloat16")
    with safe_open(out / "sae_weights.safetensors", "pt") as file:
        assert {file.get_tensor(n).dtype for n in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert json.loads((out / "cfg.json").read_text())["dtype"] == "bfloat16"
    basis = rb.import_(out)
    assert basis.dictionary.W_enc.dtype == torch.float32
    again, = rb.export(basis, "saelens", tmp_path / "again", dtype="bfloat16")
    assert (again / "sae_weights.safetensors").read_bytes() == (out / "sae_weights.safetensors").read_bytes()


# ---- a global basis, the normaliser folded in


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk", "gated"])
@pytest.mark.parametrize("format", FORMATS.values())
@pytest.mark.parametrize("fold", ["codes", "norms"])
def test_folding_is_exact_at_every_site(kind, format, fold, make_basis, rows, tmp_path):
    basis = make_basis(kind)
    if (format, kind) in (("llamascopium", "gated"), *(("sparsify", k) for k in ("relu", "jumprelu", "gated"))):
        with pytest.raises(UserError, match=r"gated|TopK"):
            rb.export(basis, format, tmp_path / "out", fold=fold)
        assert list(tmp_path.iterdir()) == []
        return
    folders = rb.export(basis, format, tmp_path / "out", fold=fold)
    assert len(folders) == len(basis.sites)
    for site, folder in zip(basis.sites, folders, strict=True):
        found, x = rb.import_(folder, format), rows(basis, site)
        assert found.sites == (site,)
        z, index = basis.encode(site, x), basis.index(site)
        scale = float(basis.normaliser.scale[index])
        want = z if fold == "codes" else z / scale
        torch.testing.assert_close(found.encode(site, x), want, rtol=1e-4, atol=2e-5 * float(want.max()))
        torch.testing.assert_close(found.decode(site, found.encode(site, x)), basis.decode(site, z), rtol=1e-4, atol=2e-5 / scale)
        norms = torch.linalg.vector_norm(found.directions(site), dim=1)
        assert torch.allclose(norms, torch.ones(()) if fold == "norms" else torch.tensor(1 / scale), rtol=1e-5)


def test_thresholds_follow_the_fold(make_basis, tmp_path):
    """Fold A leaves thresholds, fold B divides them by the scale, so the same latents fire."""
    basis = make_basis("jumprelu")
    for fold in ("codes", "norms"):
        for site, folder in zip(basis.sites, rb.export(basis, "saelens", tmp_path / fold, fold=fold), strict=True):
            scale = 1 if fold == "codes" else float(basis.normaliser.scale[basis.index(site)])
            torch.testing.assert_close(weights(folder)["threshold"], basis.dictionary.threshold / scale, rtol=1e-6, atol=0)


def test_the_fold_is_that_of_the_kit(make_basis, tmp_path):
    """Without a centre, where both can say it, folding here equals `AffineDictionary.folded` in float64."""
    basis = make_basis("jumprelu")
    for site, folder in zip(basis.sites, rb.export(basis, "dictionary-learning", tmp_path / "out"), strict=True):
        index = basis.index(site)
        want = basis.dictionary.double().folded(float(basis.normaliser.scale[index]), basis.normaliser.mean[index].double())
        got = weights(folder)
        for name, tensor in {"W_enc": want.W_enc.T, "b_enc": want.b_enc, "W_dec": want.W_dec, "b_dec": want.b_dec}.items():
            assert torch.equal(got[name], tensor.float()), name
        basis.dictionary.float()


def test_a_large_mean_costs_no_precision(make_basis, tmp_path):
    """The stream of a deep layer has a mean far larger than its spread in a few coordinates; centred formats keep codes there."""
    basis = make_basis("jumprelu", sites=(Site("resid", 9),))
    basis.normaliser.mean[0, 3] = 3000.0
    basis.normaliser.scale[0] = 1.0
    site = basis.sites[0]
    x = basis.normaliser.invert(torch.randn(64, basis.d_in, generator=torch.Generator().manual_seed(0)), 0)
    z = basis.encode(site, x)
    folder, = rb.export(basis, "saelens", tmp_path / "out")
    error = (rb.import_(folder).encode(site, x) - z).abs().max()
    assert float(error) < 2e-3  # the rounding of x itself at 3000 is 1.2e-4
    assert json.loads((folder / "cfg.json").read_text())["apply_b_dec_to_input"]


def test_only_some_sites(make_basis, tmp_path):
    folders = rb.export(make_basis("relu"), "saelens", tmp_path / "out", sites=["resid.*"])
    assert [f.name for f in folders] == ["resid.0", "resid.2"]
    with pytest.raises(UserError, match="2 checkpoints"):
        rb.import_(tmp_path / "out")


def test_expansion_factors_that_are_no_fraction(make_basis, tmp_path):
    for d, k in ((576, 4608), (12, 41), (49, 100), (7, 93)):
        folder, = rb.export(make_basis("relu", sites=(Site("embed"),), d=d, k=k), "llamascopium", tmp_path / f"{d}-{k}")
        config = json.loads((folder / "config.json").read_text())
        assert int(config["d_model"] * config["expansion_factor"]) == k
        assert math.isclose(config["expansion_factor"], k / d)


@pytest.mark.parametrize("learner", ["gated", "batchtopk"])
def test_learners_that_ship_thresholds_are_jumprelu(learner, make_basis, rows, tmp_path):
    """What they are trained with differs; what they ship is one threshold per latent."""
    like = make_basis("jumprelu", sites=(Site("resid", 0),))
    made = rb.create("learner", learner, width=like.d_dict)
    basis = type(like)(like.sites, like.normaliser, made.restore(like.d_in, like.dictionary.state_dict()), made)
    folder, = rb.export(basis, "saelens", tmp_path / "out")
    assert json.loads((folder / "cfg.json").read_text())["architecture"] == "jumprelu"
    site = basis.sites[0]
    x = rows(basis, site)
    z = basis.encode(site, x)
    torch.testing.assert_close(rb.import_(folder).encode(site, x), z, rtol=1e-4, atol=1e-5 * float(z.max()))
