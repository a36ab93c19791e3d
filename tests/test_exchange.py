"""Foreign formats through any codec: `rb.export`, `rb.import_`, and the commands; with a codec made for the test."""

import json
from pathlib import Path

import pytest
import torch

import reprbasis as rb
from reprbasis.artifacts.manifest import write_json
from reprbasis.artifacts.store import read_tensors, write_tensors
from reprbasis.cli.main import main
from reprbasis.component import Component, ComponentConfig
from reprbasis.errors import CapabilityError, ConfigError, SiteError, UnknownComponentError, UserError
from reprbasis.interfaces.codec import Codec
from reprbasis.registry import Registry
from reprbasis.runtime.basis import Basis
from reprbasis.testing.toys import _Plugin, toy_basis, toy_model


class PlainConfig(ComponentConfig):
    digits: int = 3
    """Nothing much."""


class PlainCodec(Codec[PlainConfig]):
    """One folder per site, with the whole basis in it."""

    def detect(self, folder):
        return (folder / "plain.json").is_file()

    def read(self, folder, registry):
        return Basis.load(read_tensors(folder / "w.safetensors"), json.loads((folder / "plain.json").read_text()), registry)

    def write(self, basis, folder):
        out = []
        for site in basis.sites:
            if self.config.digits == 7 and out:
                raise CapabilityError("seven digits are too many", do="use 3")
            one = basis.at([site])
            (folder / str(site)).mkdir()
            write_tensors(folder / str(site) / "w.safetensors", one.tensors())
            write_json(folder / str(site) / "plain.json", one.facts())
            out.append(folder / str(site))
        return out


class Offers:
    def __init__(self, *names):
        self.names = names

    @rb.hookimpl
    def reprbasis_register(self, register):
        for name in self.names:
            register(Component("codec", name, PlainConfig, "exchange_codec:PlainCodec", "For tests"))


@pytest.fixture
def registry(monkeypatch):
    import sys
    from types import ModuleType

    module = ModuleType("exchange_codec")
    module.PlainCodec = PlainCodec
    monkeypatch.setitem(sys.modules, "exchange_codec", module)
    found = Registry({"codec": {"foreign": "reprbasis-foreign"}})
    found.add(_Plugin(), origin="toys")
    found.add(Offers("plain"), origin="here")
    monkeypatch.setattr("reprbasis.discovery.default_registry", lambda: found)
    return found


@pytest.fixture
def basis(registry):
    return toy_basis(toy_model(), "resid.*")


def test_one_folder_per_site_and_back(basis, tmp_path):
    folders = rb.export(basis, "plain", tmp_path / "out")
    assert folders == [tmp_path / "out" / str(s) for s in basis.sites]
    for site, folder in zip(basis.sites, folders, strict=True):
        for again in (rb.import_(folder, "plain"), rb.import_(folder)):
            x = torch.randn(5, basis.d_in, generator=torch.Generator().manual_seed(0))
            assert again.sites == (site,)
            assert torch.equal(again.encode(site, x), basis.encode(site, x))


def test_some_sites(basis, tmp_path):
    assert [p.name for p in rb.export(basis, "plain", tmp_path / "out", sites="resid.-1")] == ["resid.1"]
    assert rb.import_(tmp_path / "out").sites == (rb.Site("resid", 1),)  # the only checkpoint in the folder
    with pytest.raises(SiteError):
        rb.export(basis, "plain", tmp_path / "other", sites="mlp_out.*")


def test_all_or_nothing(basis, tmp_path):
    with pytest.raises(CapabilityError):
        rb.export(basis, "plain", tmp_path / "deep" / "out", digits=7)
    assert list((tmp_path / "deep").iterdir()) == []
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="something is here"):
        rb.export(basis, "plain", tmp_path / "there")


def test_unknown_formats_and_options(basis, tmp_path):
    with pytest.raises(UnknownComponentError, match="pip install reprbasis-foreign"):
        rb.export(basis, "foreign", tmp_path / "out")
    with pytest.raises(ConfigError, match="digit"):
        rb.export(basis, "plain", tmp_path / "out", digit=3)
    with pytest.raises(UnknownComponentError, match="did you mean 'plain'"):
        rb.import_(tmp_path, "plan")
    assert list(tmp_path.iterdir()) == []


def test_import_needs_one_checkpoint(basis, registry, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        rb.import_(tmp_path / "missing")
    with pytest.raises(UserError, match="no installed codec"):
        rb.import_(tmp_path)
    with pytest.raises(UserError, match="no checkpoint of the format plain"):
        rb.import_(tmp_path, "plain")
    rb.export(basis, "plain", tmp_path / "out")
    with pytest.raises(UserError, match="2 checkpoints"):
        rb.import_(tmp_path / "out", "plain")
    registry.add(Offers("twin"), origin="there")
    with pytest.raises(UserError, match="could be here/plain or there/twin"):
        rb.import_(tmp_path / "out" / "resid.0")


# ---- commands


@pytest.fixture
def cli(registry, capsys):
    def call(*argv):
        code = main([str(a) for a in argv])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture
def saved(basis, tmp_path):
    return rb.save(basis, tmp_path / "basis")


def test_export_and_import(cli, saved, tmp_path, basis):
    code, out, _ = cli("export", saved, "plain", tmp_path / "out", "--sites", "resid.0", "resid.1", "--set", "digits=4")
    assert code == 0
    assert out.splitlines() == [str(tmp_path / "out" / "resid.0"), str(tmp_path / "out" / "resid.1")]
    code, out, _ = cli("import", tmp_path / "out" / "resid.1", "plain", "--as", tmp_path / "again")
    assert code == 0
    assert out == f"{tmp_path / 'again'}: resid.1, 8 -> 8, toys/toy-dictionary\n"
    assert rb.load(tmp_path / "again").sites == (rb.Site("resid", 1),)
    assert cli("import", tmp_path / "out" / "resid.0", "--as", tmp_path / "recognised")[0] == 0


@pytest.mark.parametrize(("argv", "told"), [
    (("export", "{saved}", "plan", "{out}"), "did you mean 'plain'"),
    (("export", "{saved}", "foreign", "{out}"), "pip install reprbasis-foreign"),
    (("export", "{here}", "plain", "{out}"), "no saved basis is here"),
    (("export", "{saved}", "plain", "{here}"), "something is here already"),
    (("export", "{saved}", "plain", "{out}", "--sites", "resid.9"), "the model has 2 layers"),
    (("export", "{saved}", "plain", "{out}", "--set", "digits"), "write --set option=value"),
    (("export", "{saved}", "plain", "{out}", "--set", "digits=many"), "digits"),
    (("export", "{saved}", "plain", "{out}", "--set", "digits=7"), "seven digits"),
    (("import", "{here}", "plain", "--as", "{out}"), "no checkpoint of the format plain"),
    (("import", "{here}/missing", "plain", "--as", "{out}"), "no such folder"),
    (("import", "{here}", "--as", "{saved}"), "something is here already"),
    (("import", "{here}", "plan", "--as", "{out}"), "did you mean 'plain'"),
])
def test_mistakes_are_told_with_code_2(cli, saved, tmp_path, argv, told):
    before = sorted(p.name for p in tmp_path.iterdir())
    code, out, err = cli(*(a.format(saved=saved, out=tmp_path / "out", here=tmp_path) for a in argv))
    assert (code, out) == (2, "")
    assert told in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_only_a_basis_is_exported(cli, tmp_path):
    from reprbasis.interfaces.evaluator import Findings

    other = rb.save(Findings(), tmp_path / "findings")
    code, _, err = cli("export", other, "plain", tmp_path / "out")
    assert code == 2
    assert "this is a saved findings, not a basis" in err


def test_a_damaged_basis_is_code_1(cli, saved, tmp_path):
    file = Path(saved) / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    code, _, err = cli("export", saved, "plain", tmp_path / "out")
    assert code == 1
    assert "damaged" in err
    assert not (tmp_path / "out").exists()
