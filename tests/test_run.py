"""Running a pipeline: reuse by fingerprint, resumption, damage, one process at a time. The steps here are toys."""

import json
from pathlib import Path

import pytest
import torch

import reprbasis as rb
from reprbasis.errors import ArtifactError, ConfigError, StorageError, UserError
from reprbasis.interfaces.evaluator import Findings
from reprbasis.interfaces.reporter import Reporter
from reprbasis.interfaces.step import Step
from reprbasis.pipeline.run import plan, read_record, run
from reprbasis.pipeline.spec import parse
from reprbasis.registry import Registry

CALLS: list[str] = []


class MakeConfig(rb.ComponentConfig):
    value: float = 1.0
    """What to make."""
    path: Path | None = None
    """A file it depends on."""
    fail: bool = False
    """Whether to fail."""


class Make(Step):
    def run(self, context, **inputs):
        CALLS.append("make")
        marker = context.scratch / "marker"
        was = marker.exists()
        marker.touch()
        if self.config.fail:
            raise ZeroDivisionError("what")
        return Findings(values={"x": torch.full((100,), self.config.value + context.seed), "resumed": torch.tensor(was)})


class Double(Step):
    def run(self, context, **inputs):
        CALLS.append("double")
        return Findings(values={"x": inputs["given"].values["x"] * 2})


class Listen(Reporter):
    seen: list = []  # noqa: RUF012

    def step_ended(self, step):
        self.seen.append((step.name, step.status))

    def run_ended(self, run, registry):
        self.seen.append(("run", [s.status for s in run.steps]))


class Plugin:
    __name__ = "toys"
    version = "1"

    @staticmethod
    @rb.hookimpl
    def reprbasis_register(register):
        from reprbasis import Component, Port

        register(Component("step", "make", MakeConfig, f"{__name__}:Make", "make", output="findings"))
        register(Component("step", "double", rb.ComponentConfig, f"{__name__}:Double", "double",
                           inputs=(Port("given", "findings"),), output="findings"))
        register(Component("reporter", "listen", rb.ComponentConfig, f"{__name__}:Listen", "listen"))


@pytest.fixture
def registry():
    CALLS.clear()
    Listen.seen.clear()
    out = Registry()
    out.add(Plugin, origin="toys", version="1")
    return out


def pipeline(registry, value=1.0, seed=0, **options):
    return parse({"reprbasis": 1, "name": "p", "seed": seed, "report": ["listen"],
                  "steps": {"a": {"do": "make", "value": value, **options}, "b": {"do": "double", "from": {"given": "a"}}}},
                 registry=registry)


def statuses(records):
    return {s.name: s.status for s in records}


def go(registry, tmp_path, *, until=None, force=(), **options):
    return run(pipeline(registry, **options), registry, runs=tmp_path, until=until, force=force)


def test_a_run_makes_artifacts_and_tells_the_reporters(registry, tmp_path):
    record = go(registry, tmp_path)
    assert statuses(record.steps) == {"a": "done", "b": "done"}
    back = rb.load(record.steps[1].folder)
    assert float(back.values["x"][0]) == 2
    assert Listen.seen == [("a", "done"), ("b", "done"), ("run", ["done", "done"])]
    manifest = json.loads((record.steps[1].folder / "manifest.json").read_text())
    assert manifest["writer"] == {"component": "toys/double", "version": "1"}
    assert manifest["inputs"] == {"given": record.steps[0].fingerprint}
    assert read_record(tmp_path / "p").steps == list(record.steps)


def test_a_second_run_reuses_everything(registry, tmp_path):
    go(registry, tmp_path)
    CALLS.clear()
    assert statuses(go(registry, tmp_path).steps) == {"a": "reused", "b": "reused"}
    assert CALLS == []
    assert statuses(plan(pipeline(registry), registry, runs=tmp_path)) == {"a": "reused", "b": "reused"}


def test_a_reused_step_keeps_the_time_it_took(registry, tmp_path):
    first, second, third = (go(registry, tmp_path) for _ in range(3))
    assert [s.made for s in first.steps] == [s.seconds for s in first.steps]
    assert [s.made for s in third.steps] == [s.made for s in second.steps] == [s.made for s in first.steps]
    assert [s.seconds for s in third.steps] == [0, 0]
    other = parse({"reprbasis": 1, "name": "p", "report": [], "steps": {"a": {"do": "make"}}}, registry=registry)
    run(other, registry, runs=tmp_path)  # another pipeline in the same folder has a record of its own
    assert [s.made for s in go(registry, tmp_path).steps] == [s.made for s in first.steps]
    manifest = first.steps[0].folder / "manifest.json"
    manifest.write_text(json.dumps({k: v for k, v in json.loads(manifest.read_text()).items() if k != "seconds"}))
    assert [s.made for s in go(registry, tmp_path).steps] == [0, first.steps[1].made]  # made before manifests told


@pytest.mark.parametrize("change", [{"value": 2.0}, {"seed": 1}])
def test_what_goes_in_decides(registry, tmp_path, change):
    go(registry, tmp_path)
    assert statuses(plan(pipeline(registry, **change), registry, runs=tmp_path)) == {"a": "waiting", "b": "waiting"}


def test_a_changed_file_is_noticed(registry, tmp_path):
    data = tmp_path / "data.txt"
    data.write_text("one")
    go(registry, tmp_path, path=str(data))
    assert statuses(plan(pipeline(registry, path=str(data)), registry, runs=tmp_path))["a"] == "reused"
    data.write_text("two")
    assert statuses(plan(pipeline(registry, path=str(data)), registry, runs=tmp_path))["a"] == "waiting"


def test_another_version_of_a_plugin_is_noticed(registry, tmp_path):
    go(registry, tmp_path)
    newer = Registry()
    newer.add(Plugin, origin="toys", version="2")
    assert statuses(plan(pipeline(newer), newer, runs=tmp_path))["a"] == "waiting"


def test_until_and_force(registry, tmp_path):
    assert statuses(go(registry, tmp_path, until="a").steps) == {"a": "done"}
    assert statuses(go(registry, tmp_path, force=["b"]).steps) == {"a": "reused", "b": "done"}
    assert statuses(go(registry, tmp_path, force=["*"]).steps) == {"a": "done", "b": "done"}
    with pytest.raises(UserError, match="no step 'bb'"):
        go(registry, tmp_path, force=["bb"])


def test_an_interrupted_step_finds_its_unfinished_work(registry, tmp_path, monkeypatch):
    real = Make.run

    def interrupted(self, context, **inputs):
        real(self, context, **inputs)
        raise KeyboardInterrupt

    monkeypatch.setattr(Make, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(registry, tmp_path)
    record = read_record(tmp_path / "p")
    assert statuses(record.steps) == {"a": "interrupted", "b": "waiting"}
    assert not record.steps[0].folder.exists()
    monkeypatch.setattr(Make, "run", real)
    record = go(registry, tmp_path)
    assert bool(rb.load(record.steps[0].folder).values["resumed"])
    assert list((tmp_path / "p" / ".work").iterdir()) == []


def test_a_damaged_input_is_named_and_force_mends_it(registry, tmp_path):
    first = go(registry, tmp_path)
    path = first.steps[0].folder / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"(?s)tensors\.safetensors.*--force a"):
        go(registry, tmp_path, force=["b"])
    go(registry, tmp_path, force=["a", "b"])
    assert float(rb.load(first.steps[0].folder).values["x"][0]) == 1


def test_a_place_that_cannot_be_written_is_said(registry, tmp_path, monkeypatch):
    real = Path.mkdir

    def refuse(self, *args, **kwargs):
        if tmp_path in self.parents:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="cannot be written to"):
        go(registry, tmp_path)


def test_two_processes_do_not_work_on_one_run(registry, tmp_path, monkeypatch):
    def inner(self, context, **inputs):
        with pytest.raises(UserError, match="another process"):
            go(registry, tmp_path)
        return Findings()

    monkeypatch.setattr(Make, "run", inner)
    assert statuses(go(registry, tmp_path, until="a").steps) == {"a": "done"}


def test_a_failing_step_is_recorded(registry, tmp_path):
    with pytest.raises(ZeroDivisionError):
        go(registry, tmp_path, fail=True)
    record = read_record(tmp_path / "p")
    assert record.steps[0].status == "failed"
    assert record.steps[0].error == "ZeroDivisionError: what"
    assert Listen.seen[-1] == ("run", ["failed", "waiting"])


def test_a_step_that_needs_a_model_says_so(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(Make, "run", lambda self, context, **inputs: context.model)
    with pytest.raises(ConfigError, match="no model"):
        go(registry, tmp_path)
