"""The command line: output, exit codes, errors in one clear message."""

import json

import pytest

from reprbasis.cli.main import COMMANDS, main
from reprbasis.errors import StorageError
from reprbasis.interfaces.reporter import RunRecord, StepRecord

GOOD = """\
reprbasis: 1
name: tiny
model: toy
steps:
  acts: {do: harvest, corpus: lines}
  basis: {do: learn, from: {activations: acts}, learner: sparse}
"""


@pytest.fixture
def cli(toy, monkeypatch, capsys):
    """Runs a command line against the toy plugin; returns (exit code, stdout, stderr)."""
    monkeypatch.setattr("reprbasis.discovery.default_registry", lambda: toy)

    def call(*argv):
        try:
            code = main(list(argv))
        except SystemExit as stop:  # argparse
            code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(GOOD)
    return path


def test_help_names_every_command(cli):
    code, out, _ = cli("--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert "usage" in out


def test_no_command_or_an_unknown_one(cli):
    assert cli()[0] == 2
    assert cli("chek")[0] == 2


def test_plugins_lists(cli):
    code, out, _ = cli("plugins")
    assert code == 0
    assert out.splitlines()[0].split() == ["kind", "name", "summary", "from"]
    assert "toys 1.0" in out
    assert cli("plugins", "list", "learner")[1].count("\n") == 3


def test_plugins_of_an_unknown_kind(cli):
    code, _, err = cli("plugins", "list", "learnr")
    assert code == 2
    assert "did you mean 'learner'" in err


def test_plugins_json(cli):
    told = json.loads(cli("plugins", "--json")[1])
    assert {c["full_name"] for c in told["components"]} >= {"toys/sparse", "toys/learn"}
    assert told["troubles"] == []
    assert json.loads(cli("plugins", "list", "model", "--json")[1])["components"][0]["provides"] == ["gradients"]


def test_plugins_show(cli):
    code, out, _ = cli("plugins", "show", "learn")
    assert code == 0
    assert "takes     activations (activations)" in out
    assert "a learner" in out
    assert "required" in out
    assert "integer >= 1" in cli("plugins", "show", "learner:sparse")[1]
    told = json.loads(cli("plugins", "show", "sparse", "--json")[1])
    assert told[0]["options"]["properties"]["width"]["default"] == 16


def test_plugins_show_of_an_unknown_name(cli):
    code, _, err = cli("plugins", "show", "sparce")
    assert code == 2
    assert "did you mean 'sparse'?" in err


def test_doctor_imports_everything(cli):
    code, out, _ = cli("plugins", "doctor")
    assert code == 1
    assert "learner 'opaque' cannot be imported" in out


def test_schema_is_json(cli):
    assert json.loads(cli("plugins", "schema")[1])["title"] == "ReprBasis pipeline"


def test_check(cli, file):
    assert cli("check", str(file)) == (0, f"{file}: fine (read, shape, wiring); steps: acts -> basis\n", "")
    code, out, _ = cli("check", str(file), "--facts", "--json")
    assert code == 0
    assert json.loads(out)["order"] == ["acts", "basis"]


def test_check_reports_all_problems_of_a_stage(cli, file):
    file.write_text(GOOD.replace("corpus: lines", "corpus: line, toknes: 3"))
    code, out, err = cli("check", str(file))
    assert (code, out) == (2, "")
    assert err.startswith("2 problems:\n")
    assert f"{file}:5: steps.acts.toknes: unknown key\n  -> did you mean 'tokens'?" in err
    code, out, _ = cli("check", str(file), "--json")
    assert code == 2
    assert json.loads(out)["stage"] == "shape"


def test_check_of_wiring_and_facts(cli, file):
    code, _, err = cli("check", str(file), "--set", "steps.basis.from.activations=basis")
    assert code == 2
    assert "the steps wait for each other: basis <- basis" in err
    assert cli("check", str(file), "--set", "steps.acts.sites=resid.9")[0] == 0
    code, _, err = cli("check", str(file), "--set", "steps.acts.sites=resid.9", "--facts")
    assert code == 2
    assert "--set steps.acts.sites=resid.9: steps.acts.sites: 'resid.9': the model has 3 layers" in err


def test_a_file_that_is_not_there(cli, tmp_path):
    code, _, err = cli("check", str(tmp_path / "q.yaml"))
    assert code == 2
    assert "there is no such file" in err


def test_plan(cli, file, tmp_path):
    code, out, _ = cli("plan", str(file), "--runs", str(tmp_path / "runs"), "--until", "acts", "--json")
    assert code == 0
    steps = json.loads(out)
    assert [(s["name"], s["status"], s["artifact"]) for s in steps] == [("acts", "waiting", "activations")]
    assert not (tmp_path / "runs").exists()
    code, out, _ = cli("plan", str(file))
    assert out.splitlines()[0].split()[:2] == ["step", "component"]


def test_plan_until_an_unknown_step(cli, file):
    code, _, err = cli("plan", str(file), "--until", "act")
    assert code == 2
    assert "did you mean 'acts'?" in err


@pytest.mark.parametrize(("error", "code", "told"), [
    (StorageError("the disk is full", where="runs", do="free space"), 1, "runs: the disk is full\n  -> free space\n"),
    (KeyboardInterrupt(), 130, "interrupted; run the same command again to resume\n"),
])
def test_how_a_run_ends_badly(cli, file, monkeypatch, error, code, told):
    def run(*args, **kwargs):
        raise error

    monkeypatch.setattr("reprbasis.pipeline.run.run", run)
    assert cli("run", str(file)) == (code, "", told)


def test_an_unexpected_error_keeps_its_traceback(file, toy, monkeypatch):
    def run(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr("reprbasis.discovery.default_registry", lambda: toy)
    monkeypatch.setattr("reprbasis.pipeline.run.run", run)
    with pytest.raises(ZeroDivisionError):
        main(["run", str(file)])


def test_run_passes_its_arguments_on(cli, file, tmp_path, monkeypatch):
    seen = {}

    def run(spec, registry, **options):
        seen.update(options, width=spec.steps["basis"].selection.config.learner.config.width)
        done = StepRecord("acts", "toys/harvest", "f", tmp_path, "activations", "done", 2.0)
        return RunRecord("tiny", tmp_path, [done], {}, 0, "now")

    monkeypatch.setattr("reprbasis.pipeline.run.run", run)
    code, out, _ = cli("run", str(file), "--set", "steps.basis.learner.width=64", "--force", "acts", "--until", "basis",
                       "--runs", str(tmp_path))
    assert code == 0
    assert seen == {"runs": tmp_path, "until": "basis", "force": ["acts"], "width": 64}
    assert "toys/harvest" in out
    cli("run", str(file), "--force")
    assert seen["force"] == ["*"]


def test_show(cli, tmp_path):
    run = {"name": "tiny", "model": {}, "seed": 0, "started": "now", "source": None,
           "steps": [{"name": "acts", "component": "toys/harvest", "fingerprint": "f", "folder": "acts-f",
                      "artifact": "activations", "status": "failed", "seconds": 1.0, "config": None, "error": "broke"}]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    code, out, _ = cli("show", str(tmp_path))
    assert code == 1
    assert "acts failed: broke" in out
    assert json.loads(cli("show", str(tmp_path), "--json")[1])["steps"][0]["status"] == "failed"


def test_show_of_no_run(cli, tmp_path):
    code, _, err = cli("show", str(tmp_path))
    assert code == 1
    assert "no run is recorded here" in err


def test_no_command_shows_the_commands(cli):
    code, _, err = cli()
    assert code == 2
    assert all(name in err for name in COMMANDS)


@pytest.mark.parametrize(("text", "told"), [
    ("", "the file is empty"),
    ("- a\n", "a pipeline is a mapping of keys to values"),
    ("reprbasis: 2\nname: x\nsteps: {a: {do: harvest, corpus: lines}}\n", "written for version 2 of the format"),
    ("reprbasis: 1\nname: x\nsteps: {}\n", "steps: at least 1 entry is needed here"),
])
def test_files_that_are_no_pipeline(cli, tmp_path, text, told):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    code, _, err = cli("check", str(path))
    assert code == 2
    assert told in err
    assert "p.yaml" in err


def test_a_directory_instead_of_a_file(cli, file):
    code, _, err = cli("check", str(file.parent))
    assert code == 2
    assert "this is a directory" in err
    assert "p.yaml" in err


def test_a_file_that_is_not_utf8(cli, tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    code, _, err = cli("check", str(path))
    assert code == 2
    assert "UTF-8" in err


def test_show_of_what_is_no_run_names_the_runs(cli, file, monkeypatch):
    monkeypatch.chdir(file.parent)
    (file.parent / "runs" / "tiny").mkdir(parents=True)
    (file.parent / "runs" / "tiny" / "run.json").write_text("{}")
    for wrong in ("runs", "runs/tinny", str(file)):
        code, _, err = cli("show", wrong)
        assert code == 1
        assert "no run is recorded here" in err
        assert "runs/tiny" in err
