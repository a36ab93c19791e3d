"""`reprbasis new`: what it writes for every kind passes its conformance suite as it stands."""

import os
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree

import pytest

from reprbasis.cli import new
from reprbasis.cli.main import main
from reprbasis.component import KINDS


def make_importable(folder):
    """Write beside the package what pip would write, from the distribution's own pyproject; no network, no build."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [f"{name} = {value}" for name, value in project["entry-points"]["reprbasis"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[reprbasis]", *points, ""]))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Kind -> (passed, what failed), from one run of all generated suites in a fresh interpreter."""
    root = tmp_path_factory.mktemp("new")
    folders = {kind: new.create(kind, f"my-{kind}", root) for kind in KINDS}
    for folder in folders.values():
        make_importable(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders.values())), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", "--junitxml",
         "report.xml", *(str(f / "tests") for f in folders.values())],
        cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert (root / "report.xml").is_file(), done.stdout + done.stderr
    found = {kind: [0, []] for kind in KINDS}
    for case in ElementTree.parse(root / "report.xml").iter("testcase"):
        kind = re.search(r"TestMy([A-Z][a-z]+)", case.get("classname"))[1].lower()
        bad = [child for child in case if child.tag in ("failure", "error")]
        found[kind][1] += [f"{case.get('name')}: {child.text}" for child in bad]
        found[kind][0] += not any(child.tag == "skipped" for child in case) and not bad
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_component_passes_its_suite_unchanged(results, kind):
    passed, failed = results[kind]
    assert not failed, "\n".join(failed)
    assert passed > 8  # the laws of every component and some of its kind


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_to_fill_in(kind, tmp_path):
    folder = new.create(kind, "my-thing", tmp_path)
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names == {"pyproject.toml", "README.md", "tests/test_contract.py", *(
        f"reprbasis_my_thing/{n}.py" for n in ("__init__", "config", "plugin", kind))}
    for path in sorted(folder.rglob("*.*")):
        text = path.read_text()
        assert not [word for word in ("name", "dist", "package", "Class", "module", "kind") if f"@{word}@" in text], path
        if path.suffix == ".py":
            compile(text, path, "exec")
            assert max(map(len, text.splitlines())) <= 120, path


def test_every_kind_has_a_template_and_a_summary():
    assert list(new.SUMMARIES) == list(KINDS)


@pytest.mark.parametrize(("kind", "name", "told"), [
    ("learnr", "my-sae", "did you mean 'learner'"),
    ("learner", "MySAE", "use lower-case words"),
    ("learner", "my_sae", "use lower-case words"),
    ("learner", "1-sae", "use lower-case words"),
    ("learner", "reprbasis-sae", "write sae"),
    ("learner", "jumprelu", "in reprbasis-jumprelu"),
    ("metric", "jumprelu", "a distribution 'reprbasis-jumprelu' already"),
])
def test_names_are_checked(kind, name, told, tmp_path, capsys):
    assert main(["new", kind, name, "--into", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("summary", ["", "two\nlines", 'a "quoted" word', "a back\\slash"])
def test_the_summary_is_one_plain_line(summary, tmp_path, capsys):
    assert main(["new", "metric", "my-metric", "--into", str(tmp_path), "--summary", summary]) == 2
    assert "one line" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_summary_is_used(tmp_path):
    folder = new.create("metric", "my-metric", tmp_path, summary="How sure the model is")
    assert tomllib.loads((folder / "pyproject.toml").read_text())["project"]["description"] == "How sure the model is"
    assert 'summary="How sure the model is"' in (folder / "reprbasis_my_metric/plugin.py").read_text()


def test_it_says_what_to_do_next_and_overwrites_nothing(tmp_path, capsys):
    assert main(["new", "metric", "my-metric", "--into", str(tmp_path / "deep")]) == 0
    told = capsys.readouterr().out
    assert "pip install -e" in told
    assert "reprbasis plugins show metric:my-metric" in told
    (tmp_path / "deep/reprbasis-my-metric/README.md").write_text("mine")
    assert main(["new", "metric", "my-metric", "--into", str(tmp_path / "deep")]) == 2
    assert "something is here already" in capsys.readouterr().err
    assert (tmp_path / "deep/reprbasis-my-metric/README.md").read_text() == "mine"


def test_it_needs_no_torch(tmp_path):
    code = ("import sys; from reprbasis.cli.main import main; main(sys.argv[1:]); "
            "print([m for m in ('torch', 'transformers') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, "new", "lens", "my-lens", "--into", str(tmp_path)],
                          capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
