"""Writes docs/reference.md and the table of plugins in README.md from the registry, the parsers and the docstrings.

`python docs/make_reference.py` writes them; with `--check` it writes nothing and returns 1 if one is stale.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import reprbasis as rb
from reprbasis import errors
from reprbasis.cli.main import COMMANDS
from reprbasis.cli.plugins import _fields as options
from reprbasis.component import ARTIFACTS, CAPABILITIES, KINDS
from reprbasis.registry import Registered

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- plugins: written by docs/make_reference.py -->", "<!-- /plugins -->"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in line) + " |" for line in lines)


def code(text: str) -> str:
    """Inline code; empty for empty."""
    return f"`{text}`" if text else ""


def first_party() -> list[Registered]:
    """Components of the distributions under plugins/, whatever else is installed here."""
    folders = {p.parent.name for p in ROOT.glob("plugins/*/pyproject.toml")}
    if missing := folders - {r.origin for r in rb.registry().components()}:
        sys.exit(f"not installed or broken: {', '.join(sorted(missing))}; pip install -r plugins/all.txt")
    return [r for r in rb.registry().components() if r.origin in folders]


def component(r: Registered) -> str:
    """One component: what it is, what it can do, its options."""
    c = r.component
    parts = [f"### {c.kind} `{c.name}`", f"{c.summary}. From [{r.origin}](../plugins/{r.origin}/README.md)."]
    if c.kind == "step":
        ports = [f"`{p.name}` ({p.type}{', optional' if p.optional else ''})" for p in c.inputs]
        parts.append(f"Takes {', '.join(ports) or 'nothing'}; makes {c.output}"
                     + ("; runs the pipeline's model." if c.needs_model else "."))
    if c.provides:
        parts.append("Provides " + ", ".join(code(p) for p in sorted(c.provides)) + ".")
    if c.requires:
        parts.append("Requires " + "; ".join(f"{', '.join(map(code, sorted(need)))} of the {kind}"
                                             for kind, need in c.requires.items()) + ".")
    rows = [(code(name), "required" if o.default == "required" else code(o.default), o.type, o.description)
            for name, o in options(r).items()]
    parts.append(table(("option", "default", "type", "meaning"), rows) if rows else "No options.")
    return "\n\n".join(parts)


def arguments(parser: argparse.ArgumentParser, path: str) -> list[str]:
    """The arguments of a command and of its actions."""
    rows, below = [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {a.dest: a.help for a in action._choices_actions}
            for name, sub in action.choices.items():
                needed = [str(a.metavar or a.dest).upper() for a in sub._actions if not a.option_strings and a.required]
                below += [f"`{' '.join([path, name, *needed])}`: {helps.get(name) or ''}", *arguments(sub, f"{path} {name}")]
        elif not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS:
            metavar = str(action.metavar or action.dest) if action.nargs != 0 else ""
            names = ", ".join(action.option_strings)
            rows.append((code(f"{names} {metavar}".strip() if names else metavar), action.help or ""))
    return ([table(("argument", "meaning"), rows)] if rows else []) + below


def command(name: str, summary: str) -> str:
    """One command of the command line."""
    parser = argparse.ArgumentParser(prog=f"reprbasis {name}")
    import_module(f"reprbasis.cli.{name}").arguments(parser)
    return "\n\n".join([f"### `{parser.prog}`", summary[0].upper() + summary[1:] + ".", *arguments(parser, parser.prog)])


def public(name: str) -> str:
    """A public name with its signature and docstring."""
    thing: Any = getattr(rb, name)
    try:
        signature = str(inspect.signature(thing)) if inspect.isfunction(thing) else ""
    except ValueError:
        signature = ""
    doc = inspect.getdoc(thing) if inspect.isfunction(thing) or inspect.isclass(thing) else ""
    head = f"### `reprbasis.{name}`"
    body = f"```text\n{name}{signature}\n```\n\n" if signature else ""
    return f"{head}\n\n{body}```text\n{doc}\n```" if doc else head


def error_rows() -> list[tuple[str, ...]]:
    """Every error class: its parent, exit code and meaning."""
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, errors.ReprBasisError)]
    return [(code(c.__name__), code(c.__mro__[1].__name__), str(c.exit_code), (inspect.getdoc(c) or "").split("\n\n")[0])
            for c in classes]


def reference() -> str:
    """The whole of docs/reference.md."""
    found = first_party()
    parts = ["# Reference",
             "Written by `python docs/make_reference.py` from the registry, the parsers and the docstrings. Do not edit.",
             "[Components](#components), [command line](#command-line), [errors and exit codes](#errors-and-exit-codes), "
             "[kinds, capabilities, artifacts](#kinds-capabilities-artifacts), [Python](#python).",
             "## Components", *(component(r) for r in found),
             "## Command line", *(command(n, s) for n, s in COMMANDS.items()),
             "## Errors and exit codes",
             "Exit code 0: fine. 1: the machine, the data on disk or the run failed. 2: the input is wrong and can be mended. "
             "130: interrupted; the same command resumes.",
             table(("class", "kind of", "exit code", "meaning"), error_rows()),
             "## Kinds, capabilities, artifacts",
             table(("kind", "answers", "interface", "conformance suite"),
                   [(code(k.name), k.question, code(k.interface), code(k.contract)) for k in KINDS.values()]),
             table(("capability", "meaning"), [(code(k), v) for k, v in CAPABILITIES.items()]),
             table(("artifact", "class"), [(code(k), code(v)) for k, v in ARTIFACTS.items()]),
             "## Python", *(public(name) for name in sorted(rb.__all__))]
    return "\n\n".join(parts) + "\n"


def readme(text: str) -> str:
    """README.md with its table of plugins renewed."""
    rows: dict[str, list[str]] = {}
    for r in first_party():
        rows.setdefault(r.origin, []).append(f"{r.kind} `{r.name}`")
    fresh = table(("distribution", "offers"), [(f"[{o}](plugins/{o}/README.md)", ", ".join(c)) for o, c in sorted(rows.items())])
    block = f"{BEGIN}\n{fresh}\n{END}"
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: block, text, flags=re.DOTALL)


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file is stale")
    check = parser.parse_args().check
    front = ROOT / "README.md"
    stale = 0
    for path, fresh in ((ROOT / "docs" / "reference.md", reference()), (front, readme(front.read_text("utf-8")))):
        if path.is_file() and path.read_text("utf-8") == fresh:
            continue
        stale += 1
        if check:
            print(f"{path.relative_to(ROOT)} is stale: run python docs/make_reference.py", file=sys.stderr)
        else:
            path.write_text(fresh, "utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
