"""The documentation is true: its examples run, its commands parse, its links lead somewhere, its generated parts are fresh."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

import reprbasis as rb
from reprbasis import errors
from reprbasis.cli.main import COMMANDS, main
from reprbasis.component import CAPABILITIES, KINDS
from reprbasis.config.strict_yaml import parse_yaml
from reprbasis.pipeline import spec, wiring

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md"),
                *(ROOT / "plugins").glob("*/README.md"), *(ROOT / "examples").rglob("*.md")])
OURS = [page for page in PAGES if page.parent in (ROOT, ROOT / "docs")]
BLOCK = re.compile(r"^(?P<mark><!-- real -->\n)?```(?P<language>[a-z]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    text: str
    line: int
    real: bool

    def __str__(self):
        return f"{shown(self.page)}:{self.line}"


def shown(page):
    return str(page.relative_to(ROOT))


def blocks(language):
    return [Block(page, m["text"], text.count("\n", 0, m.start("text")) + 1, bool(m["mark"]))
            for page in OURS for text in [page.read_text("utf-8")]
            for m in BLOCK.finditer(text) if m["language"] == language]


def command_lines():
    return sorted({line.removeprefix("$ ") for b in blocks("console") for line in b.text.splitlines()
                   if line.startswith("$ reprbasis ")})


def scripts():
    """The python blocks of each page as one script; those marked real as a script of their own."""
    for page in OURS:
        for real in (False, True):
            parts = [b for b in blocks("python") if b.page == page and b.real == real]
            if parts:
                marks = [pytest.mark.real] if real else []
                yield pytest.param(parts, id=shown(page) + (" (real)" if real else ""), marks=marks)


@pytest.mark.parametrize("parts", scripts())
def test_python_runs(parts, tmp_path):
    lines = []
    for block in parts:  # keep line numbers, so that a traceback points into the page
        lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    script = tmp_path / (parts[0].page.stem + ".py")
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=500,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, f"{shown(parts[0].page)}:\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_a_pipeline_that_checks(block):
    document = parse_yaml(block.text, str(block))
    wiring.check(spec.parse(document.data, lines=document.lines), rb.registry())


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_examples_check(file, capsys):
    assert main(["check", str(file)]) == 0


def parser_of(command):
    parser = argparse.ArgumentParser(prog=f"reprbasis {command}", exit_on_error=False)
    import_module(f"reprbasis.cli.{command}").arguments(parser)
    return parser


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_parse(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, command, *rest = shlex.split(line)
    args = parser_of(command).parse_args(rest)
    if (file := getattr(args, "file", None)) and "my-sae" not in line:
        wiring.check(spec.read(file, args.overrides), rb.registry())
    if command == "plugins" and getattr(args, "name", "") != "my-sae" and rest != ["doctor"]:
        assert main([command, *rest]) == 0


def inline_commands():
    """Whole commands in running text: `reprbasis plugins doctor`; those with placeholders in capitals are left out."""
    told = {m for page in PAGES for m in re.findall(r"`(reprbasis [a-z][^`\n]*)`", page.read_text("utf-8"))}
    return sorted(m for m in told if not re.search(r"\b[A-Z]{2,}|\bRUN\b", m) and len(m.split()) > 2)


@pytest.mark.parametrize("line", inline_commands())
def test_inline_commands_parse(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    _, command, *rest = shlex.split(line)
    parser_of(command).parse_args(rest)
    if command == "plugins" and rest != ["doctor"]:  # which asks for a process without torch
        assert main([command, *rest]) == 0


def test_every_environment_variable_is_documented():
    used = {name for path in [*ROOT.glob("reprbasis/**/*.py"), *ROOT.glob("plugins/*/reprbasis_*/**/*.py")]
            for name in re.findall(r"\bREPRBASIS_[A-Z]+\b", path.read_text("utf-8"))}
    text = (ROOT / "docs" / "pipelines.md").read_text("utf-8")
    assert [name for name in sorted(used) if f"`{name}`" not in text] == []


def test_every_command_is_documented():
    told = " ".join(page.read_text("utf-8") for page in OURS if page.name != "reference.md")
    assert [c for c in COMMANDS if f"reprbasis {c}" not in told] == []


def test_every_error_and_kind_is_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    classes = [n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, errors.ReprBasisError)]
    assert [n for n in [*classes, *KINDS, *CAPABILITIES] if f"`{n}`" not in text] == []


def test_generated_parts_are_fresh():
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "make_reference.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def anchors(page):
    """Anchors of the headings, as forges make them."""
    text = BLOCK.sub("", page.read_text("utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text("utf-8"))
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            dead.append(target)
    assert dead == []


def test_the_readme_gives_the_commands_of_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    told = [line for b in blocks("sh") if b.page.name == "README.md" for line in b.text.splitlines()]
    assert told == ["make demo", "make test"]
    assert {"demo", "test", *re.findall(r"`make (\w+)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))} <= targets


@pytest.mark.parametrize("folder", sorted(p.parent for p in (ROOT / "plugins").glob("*/pyproject.toml")), ids=lambda p: p.name)
def test_every_plugin_tells_its_components_and_options(folder):
    text = (folder / "README.md").read_text("utf-8")
    offered = [r for r in rb.registry().components() if r.origin == folder.name]
    assert offered, f"{folder.name} offers nothing: is it installed?"
    assert [r.name for r in offered if f"`{r.name}`" not in text] == []
    where = "reprbasis plugins show"
    missing = [f"{r.name}.{o}" for r in offered for o in r.component.config.model_fields if f"`{o}`" not in text]
    assert not missing or where in text, f"name these options, or say `{where} NAME`: {missing}"


def test_all_plugins_are_installed_by_the_makefile():
    listed = {Path(line.split()[-1]).name for line in (ROOT / "plugins" / "all.txt").read_text().splitlines() if line}
    assert listed == {p.parent.name for p in (ROOT / "plugins").glob("*/pyproject.toml")}


def test_no_file_names_a_machine():
    """Neither paths of the machine it was written on, nor package mirrors."""
    wrong = re.compile(r"(?<![\w./-])/(?:work|home|root|Users)/\w|index-url|extra-index|://(?:localhost|127\.|10\.|192\.168\.)")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path != Path(__file__).resolve() and path.suffix not in (".safetensors", ".png"):
            text = path.read_text("utf-8", errors="ignore")
            found += [f"{name}:{text.count(chr(10), 0, m.start()) + 1}" for m in wrong.finditer(text)]
    assert found == []


def test_ci_runs_what_the_readme_says():
    steps = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "make test" in steps
    assert "lint" in steps
    assert "types" in steps
    assert "docs" in steps
