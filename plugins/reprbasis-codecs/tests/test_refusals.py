"""What a format cannot say, and what no learner here does, is an error that names it; nothing is left behind."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import reprbasis as rb
from reprbasis.artifacts.store import read_tensors, write_tensors
from reprbasis.errors import ArtifactError, CapabilityError, NumericsError, ShapeError, UnknownComponentError, UserError
from reprbasis.sites import Site

DATA = Path(__file__).parent / "data"
CONFIG = {"saelens": "cfg.json", "dictionary_learning": "config.json", "sparsify": "cfg.json", "llamascopium": "config.json"}
WEIGHTS = {"saelens": "sae_weights.safetensors", "dictionary_learning": "ae.safetensors", "sparsify": "sae.safetensors",
           "llamascopium": "sae_weights.safetensors"}


@pytest.fixture
def changed(tmp_path):
    """A checkpoint with some of its config and tensors changed; a value of None removes the key."""
    def change(library, name, tensors=None, inside=None, **config):
        folder = tmp_path / name
        shutil.copytree(DATA / library / name, folder)
        file, weights = folder / CONFIG[library], folder / WEIGHTS[library]
        document = json.loads(file.read_text())
        part = document if inside is None else document[inside]
        part.update(config)
        for key in [k for k, v in config.items() if v is None]:
            del part[key]
        file.write_text(json.dumps(document))
        if tensors:
            found = read_tensors(weights) | tensors
            write_tensors(weights, {n: t for n, t in found.items() if t is not None})
        return folder

    return change


CASES = [
    ("saelens", "standard", {"architecture": "temporal"}, CapabilityError, "temporal"),
    ("saelens", "standard", {"reshape_activations": "hook_z"}, CapabilityError, "hook_z"),
    ("saelens", "standard", {"normalize_activations": "layer_norm"}, CapabilityError, "layer_norm"),
    ("saelens", "standard", {"normalize_activations": "expected_average_only_in"}, UserError, "input_scale"),
    ("saelens", "standard", {"inside": "metadata", "hook_name": "blocks.3.attn.hook_q"}, UserError, "site=resid.12"),
    ("saelens", "standard", {"architecture": "jumprelu"}, ArtifactError, "no tensor threshold"),
    ("saelens", "jumprelu", {"architecture": "standard"}, ArtifactError, "threshold have no place"),
    ("saelens", "standard", {"tensors": {"b_enc": torch.zeros(3)}}, ShapeError, "b_enc has shape"),
    ("saelens", "standard", {"tensors": {"b_enc": torch.full((64,), torch.nan)}}, NumericsError, "NaN"),
    ("saelens", "topk", {"k": 65}, ShapeError, "k is 65"),
    ("saelens", "topk", {"k": None}, ShapeError, "k is None"),
    ("dictionary_learning", "AutoEncoder", {"inside": "trainer", "dict_class": "CrossCoder"}, CapabilityError, "CrossCoder"),
    ("dictionary_learning", "AutoEncoder", {"trainer": None}, CapabilityError, "None"),
    ("dictionary_learning", "AutoEncoder", {"inside": "trainer", "layer": None}, UserError, "site=resid.12"),
    ("dictionary_learning", "BatchTopKSAE", {"tensors": {"threshold": torch.tensor(-1.0)}}, UserError, "--set threshold"),
    ("sparsify", "layers.10", {"activation": "groupmax"}, CapabilityError, "groupmax"),
    ("sparsify", "layers.10", {"transcode": True}, CapabilityError, "transcode"),
    ("sparsify", "layers.10", {"skip_connection": True}, CapabilityError, "skip_connection"),
    ("sparsify", "layers.10", {"tensors": {"W_skip": torch.zeros(16, 16)}}, ArtifactError, "W_skip"),
    ("llamascopium", "relu", {"sae_type": "lorsa"}, CapabilityError, "lorsa"),
    ("llamascopium", "relu", {"hook_point_out": "blocks.1.hook_mlp_out"}, CapabilityError, "transcoder"),
    ("llamascopium", "relu", {"use_glu_encoder": True}, CapabilityError, "GLU"),
    ("llamascopium", "topk", {"act_fn": "batchtopk"}, CapabilityError, "convert it to JumpReLU"),
    ("llamascopium", "relu", {"norm_activation": "token-wise"}, CapabilityError, "token-wise"),
    ("llamascopium", "relu", {"tensors": {"dataset_average_activation_norm.blocks.0.hook_mlp_out": torch.tensor(0.0)}}, UserError,
     "mean norm"),
]


@pytest.mark.parametrize(("library", "name", "change", "error", "told"), CASES, ids=lambda v: str(v)[:40])
def test_import_says_what_it_cannot_do(library, name, change, error, told, changed):
    with pytest.raises(error, match=told):
        rb.import_(changed(library, name, **change), library.replace("_", "-"))


def test_the_user_may_say_what_the_files_do_not(changed):
    folder = changed("saelens", "standard", normalize_activations="expected_average_only_in")
    basis = rb.import_(folder, input_scale=0.25, site="mlp_out.3")
    assert basis.sites == (Site("mlp_out", 3),)
    assert basis.normaliser.scale.tolist() == [0.25]
    folder = changed("dictionary_learning", "BatchTopKSAE", tensors={"threshold": torch.tensor(-1.0)})
    assert rb.import_(folder, threshold=0.5).dictionary.threshold.unique().tolist() == [0.5]
    with pytest.raises(UserError, match="input_scale is given"):
        rb.import_(DATA / "saelens" / "standard", input_scale=2.0)


def test_a_pickle_is_not_opened(tmp_path):
    """The message holds the command that converts it, and that command does."""
    folder = tmp_path / "ae"
    shutil.copytree(DATA / "dictionary_learning" / "AutoEncoderTopK", folder)
    state = read_tensors(folder / "ae.safetensors")
    (folder / "ae.safetensors").unlink()
    (folder / "expected.safetensors").unlink()
    torch.save(state, folder / "ae.pt")
    with pytest.raises(UserError, match="pickle") as caught:
        rb.import_(folder)
    import subprocess
    import sys

    command = caught.value.do.partition("folder: ")[2].replace("python", f'"{sys.executable}"', 1)
    subprocess.run(command, shell=True, cwd=folder, check=True)
    assert rb.import_(folder).d_dict == 64


def test_configs_from_before_version_6(changed):
    new = DATA / "saelens" / "topk"
    config = json.loads((new / "cfg.json").read_text())
    flat = {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": config["k"]}, "metadata": None,
            "hook_point": "blocks.2.hook_resid_pre", "hook_point_layer": 2, "d_in": 16, "d_sae": 64, "dtype": "torch.float32",
            "normalize_activations": False, "rescale_acts_by_decoder_norm": None, "k": None}
    old = rb.import_(changed("saelens", "topk", **flat))
    assert old.sites == (Site("resid", 1),)
    assert all(torch.equal(t, old.tensors()[n]) for n, t in rb.import_(new).tensors().items())


def test_old_flat_configs_that_mean_something_else(changed):
    for options, told in (({"finetuning_scaling_factor": True}, "fine-tuned"), ({"activation_fn": "tanh-relu"}, "tanh-relu")):
        folder = changed("saelens", "standard", metadata=None, hook_name="hook_embed", **options)
        with pytest.raises(CapabilityError, match=told):
            rb.import_(folder)
        shutil.rmtree(folder)


def test_a_missing_learner_is_named():
    registry = type(rb.registry())({"learner": {"gated": "reprbasis-gated"}})
    import reprbasis_codecs.plugin

    registry.add(reprbasis_codecs.plugin, origin="reprbasis-codecs")
    with pytest.raises(UnknownComponentError, match="pip install reprbasis-gated"):
        rb.import_(DATA / "saelens" / "gated", registry=registry)


# ---- export



def test_a_dictionary_that_only_looks_right_is_refused(make_basis, tmp_path):
    basis = make_basis("jumprelu")
    honest = type(basis.dictionary)

    class Squares(honest):
        def activate(self, h):
            return super().activate(h) ** 2

    basis.dictionary.__class__ = Squares
    with pytest.raises(CapabilityError, match="cannot be written as SAELens"):
        rb.export(basis, "saelens", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_other_dictionaries_are_refused(tmp_path):
    from reprbasis.testing.toys import toy_basis, toy_model

    for format in ("saelens", "dictionary-learning", "sparsify", "llamascopium"):
        with pytest.raises(CapabilityError, match="toy-dictionary"):
            rb.export(toy_basis(toy_model()), format, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_when_the_disk_fails(make_basis, tmp_path, monkeypatch):
    import reprbasis_codecs.files as files

    from reprbasis.errors import StorageError

    real, calls = files.write_json, []

    def fail(path, value):
        calls.append(path)
        if len(calls) == 2:
            raise StorageError("the disk is full", where=str(path))
        real(path, value)

    monkeypatch.setattr(files, "write_json", fail)
    with pytest.raises(StorageError):
        rb.export(make_basis("relu"), "saelens", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_path_is_not_exported(make_basis, tmp_path):
    basis = make_basis("relu")
    basis.details["activations"]["model"]["config"]["checkpoint"] = str(tmp_path / "model")
    for folder in rb.export(basis, "saelens", tmp_path / "out"):
        assert str(tmp_path) not in (folder / "cfg.json").read_text()
