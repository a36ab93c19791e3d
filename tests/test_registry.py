"""Registry and discovery: names, clashes, rollback; broken distributions never hide others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reprbasis import Component, ComponentConfig, hookimpl
from reprbasis.errors import ConfigError, PluginError, UnknownComponentError, near
from reprbasis.registry import Registry

ROOT = Path(__file__).parents[1]


class Options(ComponentConfig):
    """No options."""


def learner(name, **more):
    return Component("learner", name, Options, "nowhere:X", "A learner", **more)


# ---- near misses

@pytest.mark.parametrize(("name", "told"), [
    ("jumprlu", "did you mean 'jumprelu'?"), ("SMOLM2", "did you mean 'smollm2-135m-instruct'?"),
    ("l0", "did you mean 'target_l0'?"), ("tiny", "did you mean 'tiny-llava' or 'tiny-qwen3'?"),
    ("x", "known: jumprelu, smollm2-135m-instruct, target_l0, tiny-llava, tiny-qwen3"),
])
def test_near_misses_are_written_alike_as_a_whole_or_in_part(name, told):
    assert near(name, ["jumprelu", "smollm2-135m-instruct", "target_l0", "tiny-llava", "tiny-qwen3"]) == told


# ---- the registry


def test_short_and_full_names(toy):
    found = toy.component("learner", "sparse")
    assert found.full_name == "toys/sparse"
    assert toy.component("learner", "toys/sparse") is found
    assert [r.name for r in toy.components("corpus")] == ["lines", "talk"]


def test_unknown_name_gives_near_misses_and_what_is_installed(toy):
    with pytest.raises(UnknownComponentError, match="'sparce'") as caught:
        toy.component("learner", "sparce")
    assert "did you mean 'sparse'?" in caught.value.do
    assert "installed: opaque, sparse" in caught.value.do
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["jumping", "jumpin", "reprbasis-jumping/jumping"])
def test_known_but_not_installed_gives_the_pip_line(toy, name):
    with pytest.raises(UnknownComponentError) as caught:
        toy.component("learner", name)
    assert "pip install reprbasis-jumping" in caught.value.do


def test_unknown_kind(toy):
    with pytest.raises(UnknownComponentError, match="no kind") as caught:
        toy.component("learnr", "sparse")
    assert "learner" in caught.value.do


def test_a_short_name_of_two_distributions_is_an_error_at_use_only(toy, make_plugin):
    toy.add(make_plugin([learner("sparse")]), origin="others")
    with pytest.raises(UnknownComponentError) as caught:
        toy.component("learner", "sparse")
    assert "others/sparse or toys/sparse" in caught.value.do
    assert toy.component("learner", "others/sparse").origin == "others"
    assert toy.component("learner", "opaque").origin == "toys"
    assert [[r.full_name for r in group] for group in toy.clashes()] == [["others/sparse", "toys/sparse"]]


@pytest.mark.parametrize(("bad", "told"), [
    (learner("two", api=99), "upgrade reprbasis"),
    (learner("Two"), "lower-case"),
    (learner("two", provides={"flying"}), "unknown capabilities"),
    (learner("one"), "offered twice"),
    ("nonsense", "Component"),
])
def test_a_faulty_plugin_is_rolled_back(make_plugin, bad, told):
    registry = Registry()
    with pytest.raises(PluginError) as caught:
        registry.add(make_plugin([learner("one"), bad]), origin="bad")
    assert told in str(caught.value)
    assert registry.components() == []
    registry.add(make_plugin([learner("one")]), origin="good")
    assert registry.component("learner", "one").origin == "good"


def test_reserved_option_names_are_refused(make_plugin):
    class Taken(ComponentConfig):
        use: int = 0

    with pytest.raises(PluginError, match="options named use"):
        Registry().add(make_plugin([Component("learner", "one", Taken, "a:B", "s")]), origin="bad")


def test_a_misspelled_hook_is_named():
    class Misspelled:
        @hookimpl
        def reprbasis_registre(self, register):
            register(learner("one"))

    registry = Registry()
    with pytest.raises(PluginError, match="'reprbasis_registre': did you mean 'reprbasis_register'"):
        registry.add(Misspelled(), origin="bad")
    assert registry.components() == []


def test_a_plugin_that_offers_nothing(make_plugin):
    with pytest.raises(PluginError, match="offers no component"):
        Registry().add(make_plugin([]))


def test_adding_again_needs_replace(make_plugin):
    registry = Registry()
    registry.add(make_plugin([learner("one"), learner("two")]), origin="mine")
    with pytest.raises(PluginError, match="offered twice"):
        registry.add(make_plugin([learner("one")]), origin="mine")
    registry.add(make_plugin([learner("one")]), origin="mine", replace=True)
    assert [r.name for r in registry.components()] == ["one"]


def test_load_checks_the_interface(toy):
    assert toy.load("model", "toy").__name__ == "Toy"
    with pytest.raises(PluginError, match=r"not a subclass of reprbasis\.interfaces\.learner\.DictionaryLearner"):
        toy.load("learner", "sparse")
    with pytest.raises(PluginError, match="toys: the factory of corpus 'lines' names 'Missing'"):
        toy.load("corpus", "lines")
    with pytest.raises(PluginError, match="toys: learner 'opaque' cannot be imported") as caught:
        toy.load("learner", "opaque")
    assert "nowhere_to_be_found" in caught.value.do


def test_create_validates_and_names_the_instance(toy):
    assert toy.create("reporter", "quiet").full_name == "toys/quiet"
    with pytest.raises(ConfigError) as caught:
        toy.create("learner", "sparse", widht=3, schedule={"rat": 1})
    assert {p.do for p in caught.value.problems} == {"did you mean 'width'?", "did you mean 'rate'?"}


# ---- discovery, with distributions on disk and a fresh interpreter


def write_distribution(folder, name, plugin, version="1.0"):
    """A distribution with one declaration module, as pip would have installed it."""
    package = name.replace("-", "_")
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    (folder / package / "plugin.py").write_text(plugin)
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[reprbasis]\n{name} = {package}.plugin\n")


def declaration(component='"learner", "spare", ComponentConfig, "x:Y", "A"', hook="reprbasis_register", first=""):
    return (f"{first}\nfrom reprbasis import Component, ComponentConfig, hookimpl\n\n@hookimpl\ndef {hook}(register):\n"
            f"    register(Component({component}))\n")


def fresh(folder, *arguments, **environment):
    """Run `python -m reprbasis` in a fresh interpreter that sees the distributions in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "reprbasis", *arguments], capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **environment})


@pytest.fixture
def world(tmp_path):
    """One good distribution and one of every way to be bad."""
    write_distribution(tmp_path, "good-one", declaration('"learner", "good", ComponentConfig, "x:Y", "Good"'))
    write_distribution(tmp_path, "bad-import", declaration(first="import a_module_that_is_not_there"))
    write_distribution(tmp_path, "bad-exit", declaration(first="raise SystemExit('no licence')"))
    write_distribution(tmp_path, "bad-api", declaration('"learner", "old", ComponentConfig, "x:Y", "Old", api=0'))
    write_distribution(tmp_path, "bad-hook", declaration(hook="reprbasis_registr"))
    write_distribution(tmp_path, "bad-syntax", "def (:\n")
    write_distribution(tmp_path, "clash-one", declaration('"learner", "same", ComponentConfig, "x:Y", "One"'))
    write_distribution(tmp_path, "clash-two", declaration('"learner", "same", ComponentConfig, "x:Y", "Two"'))
    return tmp_path


WORLD = "good-one,bad-import,bad-exit,bad-api,bad-hook,bad-syntax,clash-one,clash-two"


def test_every_bad_plugin_is_reported_and_the_rest_works(world):
    done = fresh(world, "plugins", "--json", REPRBASIS_PLUGINS=WORLD)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [c["full_name"] for c in told["components"]] == ["good-one/good", "clash-one/same", "clash-two/same"]
    troubles = {t["origin"]: t for t in told["troubles"]}
    assert "a_module_that_is_not_there" in troubles["bad-import"]["do"]
    assert "no licence" in troubles["bad-exit"]["error"]
    assert "upgrade the plugin" in troubles["bad-api"]["error"]
    assert "did you mean 'reprbasis_register'" in troubles["bad-hook"]["error"]
    assert "SyntaxError" in troubles["bad-syntax"]["error"]
    assert troubles["clash-one and clash-two"]["do"] == "write the full name: clash-one/same or clash-two/same"
    assert all(t["do"] for t in troubles.values())


def test_the_listing_for_people_shows_troubles_too(world):
    done = fresh(world, "plugins", REPRBASIS_PLUGINS=WORLD)
    assert done.returncode == 0
    for word in ("good", "clash-one/same", "! bad-import", "! bad-api", "! bad-hook", "! clash-one and clash-two"):
        assert word in done.stdout


def test_doctor_fails_when_something_is_wrong(world):
    done = fresh(world, "plugins", "doctor", "--json", REPRBASIS_PLUGINS="good-one,bad-api")
    assert done.returncode == 1
    origins = {t["origin"] for t in json.loads(done.stdout)["troubles"]}
    assert origins == {"good-one", "bad-api"}  # the factory of good-one is in a module that does not exist


def test_a_lookup_repeats_what_is_broken(world):
    (world / "p.yaml").write_text("reprbasis: 1\nname: x\nsteps:\n  a: {do: bad-hook/thing}\n")
    done = fresh(world, "check", "p.yaml", REPRBASIS_PLUGINS=WORLD)
    assert done.returncode == 2
    assert "p.yaml:4: steps.a: there is no step 'bad-hook/thing'" in done.stderr
    assert "broken: bad-hook" in done.stderr


def test_restriction_to_a_distribution_that_is_not_there(world):
    done = fresh(world, "plugins", "--json", REPRBASIS_PLUGINS="good_one,god-one")
    told = json.loads(done.stdout)
    assert [c["name"] for c in told["components"]] == ["good"]
    assert [t["origin"] for t in told["troubles"]] == ["god-one"]


def test_no_plugin_at_all(tmp_path):
    done = fresh(tmp_path, "plugins", REPRBASIS_PLUGINS="none-at-all")
    assert done.returncode == 0
    assert "pip install" in done.stdout


def test_known_components_agree_with_the_plugins_of_this_repository():
    """When this fails, bring reprbasis/known.json up to date."""
    script = ("import json, sys\nfrom importlib import import_module\nfrom pathlib import Path\n"
              "from reprbasis.registry import Registry\nr = Registry()\n"
              "for p in sorted(Path('plugins').glob('*/reprbasis_*/plugin.py')):\n"
              "    sys.path.insert(0, str(p.parents[1].resolve()))\n"
              "    r.add(import_module(p.parent.name + '.plugin'), origin=p.parents[1].name)\n"
              "print(json.dumps([(c.kind, c.name, c.origin) for c in r.components()]))")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    table = json.loads((ROOT / "reprbasis" / "known.json").read_text())
    known = {(kind, name, origin) for kind, names in table.items() for name, origin in names.items()}
    assert known == set(map(tuple, json.loads(done.stdout)))


def test_hook_calls_can_be_traced(make_plugin, monkeypatch, capsys):
    monkeypatch.setenv("REPRBASIS_TRACE", "1")
    Registry().add(make_plugin([learner("a")]), origin="toys")
    assert "reprbasis_register" in capsys.readouterr().err


def test_a_restricted_discovery_says_so(toy, monkeypatch):
    monkeypatch.setenv("REPRBASIS_PLUGINS", "toys")
    with pytest.raises(UnknownComponentError) as caught:
        toy.component("learner", "jumping")
    assert "add reprbasis-jumping to REPRBASIS_PLUGINS" in str(caught.value)
    with pytest.raises(UnknownComponentError) as caught:
        toy.component("learner", "sparce")
    assert "did you mean 'sparse'?" in str(caught.value)
    assert "REPRBASIS_PLUGINS=toys allows" in str(caught.value)
