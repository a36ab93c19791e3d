"""Artifacts on the Hugging Face hub: safetensors and JSON with a model card; verified after download.

Both directions work without a network too: `stage` writes the folder that `push` uploads, and `pull` reads from a folder.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any, Protocol

from ..errors import ArtifactError, UserError
from ..sites import Site
from .manifest import Manifest, new_folder, read_manifest, verify, write_bytes

KEPT = (".json", ".safetensors")
CARD = "README.md"


class Hub(Protocol):
    """The part of `huggingface_hub.HfApi` that is used."""

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> Any:
        """Make a model repository."""

    def upload_folder(self, *, repo_id: str, folder_path: str | Path, commit_message: str | None = None) -> Any:
        """Upload a folder as one commit; returns an object with `commit_url`."""

    def snapshot_download(self, repo_id: str, *, revision: str | None = None,
                          allow_patterns: list[str] | str | None = None) -> Any:
        """Download a repository; returns the folder it is in."""


def push(folder: str | Path, repo: str, *, findings: str | Path | None = None, license: str | None = None,
         private: bool = False, message: str | None = None, hub: Hub | None = None) -> str:
    """Upload a saved artifact with a generated model card, as one commit.

    Args:
        folder: the artifact, with its `manifest.json`; its hashes are verified first.
        repo: `owner/name` on the hub; it is made if it does not exist.
        findings: a saved findings artifact about it, whose numbers go into the card beside their controls.
        license: of the dictionary, by its hub identifier (`apache-2.0`).
        private: whether a new repository is private.
        message: of the commit.
        hub: for tests; by default the real one, with the token of `hf auth login` or `HF_TOKEN`.

    Returns:
        Address of the commit.

    Raises:
        ArtifactError: the artifact is damaged. UserError: the hub refuses, or the findings are about something else.
    """
    with tempfile.TemporaryDirectory() as scratch:
        staged = stage(folder, Path(scratch) / "upload", repo=repo, findings=findings, license=license)
        with _answers(repo):
            api = hub or _hub()
            api.create_repo(repo, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repo, folder_path=staged, commit_message=message or "Add a ReprBasis artifact")
    return str(getattr(done, "commit_url", done))


def stage(folder: str | Path, target: str | Path, *, repo: str = "OWNER/NAME", findings: str | Path | None = None,
          license: str | None = None) -> Path:
    """Write what `push` would upload, to look at or to carry by hand. Arguments as there; `target` must not exist."""
    source, target = Path(folder), Path(target)
    manifest = read_manifest(source)
    _check_names(manifest, source)
    verify(source, manifest)
    text = card(manifest, repo=repo, findings=None if findings is None else _findings(Path(findings), manifest), license=license)
    if target.exists():
        raise UserError("something is here already", where=str(target), do="choose another folder")
    with new_folder(target) as part:
        _copy(source, part, manifest)
        write_bytes(part / CARD, text.encode())
    return target


def pull(source: str, folder: str | Path, *, revision: str | None = None, hub: Hub | None = None) -> Path:
    """Download an artifact and verify every file against its manifest. Nothing but safetensors and JSON is fetched.

    Args:
        source: `owner/name` on the hub, or a local folder as `stage` writes it.
        folder: where it goes; must not exist. Load it with `rb.load`.
        revision: branch, tag or commit on the hub; a commit pins the bytes.
        hub: for tests.

    Raises:
        UserError: `folder` exists, or the hub does not give it.
        ArtifactError: a file is missing or is not what the manifest says; nothing is left behind.
    """
    target = Path(folder)
    if target.exists():
        raise UserError("something is here already", where=str(target), do="choose another folder")
    local = Path(source)
    if local.is_dir():
        if revision is not None:
            raise UserError(f"revision '{revision}' is set for the local folder '{source}'", do="leave revision out")
    else:
        with _answers(source):
            got = (hub or _hub()).snapshot_download(source, revision=revision, allow_patterns=[f"*{end}" for end in KEPT])
        local = Path(got)
    manifest = read_manifest(local)
    _check_names(manifest, local)
    with new_folder(target) as part:
        _copy(local, part, manifest)
        try:
            verify(part, manifest)
        except ArtifactError as error:
            raise ArtifactError(error.what, where=f"{source}: {Path(error.where or '').name}",
                                do="pull again; if it stays so, ask the owner to upload the artifact again") from None
    return target


def card(manifest: Manifest, *, repo: str, findings: Manifest | None = None, license: str | None = None) -> str:
    """The model card (README.md) of an artifact, from its facts alone.

    Args:
        manifest: of the artifact.
        repo: where it will be.
        findings: manifest of a findings artifact about it.
        license: of the dictionary.
    """
    facts = manifest.facts
    model = facts.get("activations", {}).get("model", {})
    base = str(model.get("config", {}).get("checkpoint", ""))
    learner = str(facts.get("learner", ""))
    package = learner.partition("/")[0]
    head = ["---", "library_name: reprbasis", *([f"license: {license}"] if license else []),
            *([f"base_model: {base}"] if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else []),
            "tags: [reprbasis, interpretability, dictionary-learning]", "---"]
    rows = list(_rows(facts, model, base)) if manifest.type == "basis" else []
    parts = ["\n".join(head), f"# {repo.rpartition('/')[2]}",
             f"A {manifest.type} of [ReprBasis](https://pypi.org/project/reprbasis/), which reads and edits language models in "
             "one feature space shared by all sites of the residual stream."]
    if rows:
        parts.append(_table(("", ""), rows))
    install = " ".join(["reprbasis", *([package] if package not in ("", "reprbasis") else [])])
    parts += ["## Use", f"```sh\npip install {install}\nreprbasis pull {repo} my-{manifest.type}\n```\n\n"
              f"```python\nimport reprbasis as rb\n\n{manifest.type} = rb.load(\"my-{manifest.type}\")\n```"]
    parts += ["## Measured", *_measured(findings, facts.get("sites", []))]
    parts += ["## Options", "```json\n" + _json({k: facts[k] for k in ("config", "training") if k in facts}) + "\n```"]
    stated = f"The dictionary: {license}." if license else "The owner has not stated a licence for the dictionary."
    parts += ["## Licence", f"{stated} It was learned from activations of {base or 'a model'}; what the licences of that model "
              "and of the text it was run on say about derived work applies too."]
    parts += ["## Files", _table(("file", "bytes", "SHA-256"),
                                 [(n, str(f.bytes), f"`{f.sha256}`") for n, f in manifest.files.items()])]
    return "\n\n".join(parts) + "\n"


def local_paths(manifest: Manifest) -> list[str]:
    """Absolute paths in the facts of an artifact: places on this machine that an upload would tell everybody."""
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, Mapping):
            for item in value.values():
                walk(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)
        elif isinstance(value, str) and "\n" not in value and re.match(r"(?:/|~/|[A-Za-z]:\\)[^/\s]", value):
            found.append(value)

    walk(manifest.facts)
    return sorted(set(found))


def _rows(facts: Mapping[str, Any], model: Mapping[str, Any], base: str) -> Iterator[tuple[str, str]]:
    if base:
        revision = model.get("revision")
        yield "model", base + (f", revision `{revision}`" if revision else "")
    yield "sites", _sites(facts["sites"])
    yield "size", f"width {facts['d_in']}, {facts['d_dict']} latents"
    yield "learner", f"`{facts['learner']}`" + (f"; provides {', '.join(facts['capabilities'])}" if facts["capabilities"] else "")
    training, activations = facts.get("training", {}), facts.get("activations", {})
    if training:
        yield "training", ", ".join(f"{k} {training[k]}" for k in ("rows", "batch", "lr", "normaliser", "seed") if k in training)
    if activations:
        corpus = activations.get("corpus", {})
        told = [f"{activations[k]} {k}" for k in ("tokens", "sequences") if k in activations]
        yield "text", ", ".join(([f"`{corpus['use']}`"] if "use" in corpus else []) + told)
    if imported := facts.get("imported"):
        yield "imported from", f"`{imported.get('format')}`, architecture {imported.get('architecture')}"


def _sites(names: list[str]) -> str:
    groups: dict[str, list[int]] = {}
    for site in map(Site.parse, names):
        groups.setdefault(site.name, []).extend([] if site.layer is None else [site.layer])
    told = [f"`{name}`" + (f" (layers {_ranges(layers)})" if layers else "") for name, layers in groups.items()]
    return f"{len(names)}: {', '.join(told)}"


def _ranges(layers: list[int]) -> str:
    spans: list[list[int]] = []
    for layer in sorted(layers):
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans)


def _measured(findings: Manifest | None, sites: Sequence[str]) -> Iterator[str]:
    if findings is None:
        yield "No measurements came with this upload."
        return
    groups: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = {}
    for m in findings.facts["measurements"]:
        where = "" if m["site"] in sites else m["site"] or "everything"
        of_name = groups.setdefault(m["name"] + (f" ({m['unit']})" if m["unit"] else ""), {})
        of_name.setdefault((where, m["condition"]), []).append(m)
    rows = [(name, condition, where or f"{len(found)} sites", _value(found, alone=bool(where)), _span([m["n"] for m in found]))
            for name, of_name in groups.items() for (where, condition), found in of_name.items()]
    yield ("Each measurement stands beside its controls (condition). Over several sites: median (lowest to highest); at one "
           "place: value [95 % interval]. n is the number of units (tokens, latents) of each value. The findings artifact has "
           "the intervals of every site.")
    yield _table(("measurement", "condition", "where", "value", "n"), rows)
    for note in findings.facts.get("notes", ()):
        yield str(note)


def _value(found: Sequence[Mapping[str, Any]], *, alone: bool) -> str:
    values = [float(m["value"]) for m in found]
    if not alone:
        return f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})"
    low, high = found[0]["low"], found[0]["high"]
    return f"{values[0]:.4g}" + ("" if low is None else f" [{low:.4g}, {high:.4g}]")


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _findings(folder: Path, about: Manifest) -> Manifest:
    found = read_manifest(folder)
    if found.type != "findings":
        raise UserError(f"this is a {found.type}, not findings", where=str(folder), do="name the artifact of an evaluate step")
    if about.fingerprint and about.fingerprint not in found.inputs.values():
        raise UserError("these findings were not made with this artifact", where=str(folder),
                        do="name the findings of the same run, or leave them out")
    verify(folder, found)
    return found


def _check_names(manifest: Manifest, folder: Path) -> None:
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or path.suffix not in KEPT:
            raise ArtifactError(f"the manifest lists '{name}', which is not a safetensors or JSON file of its own folder",
                                where=str(folder), do="do not use it; ask its owner what it is")


def _copy(source: Path, target: Path, manifest: Manifest) -> None:
    for name in [*manifest.files, "manifest.json"]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_file():  # what is missing is told by `verify`
            shutil.copyfile(source / name, target / name)


@contextmanager
def _answers(repo: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, LocalTokenNotFoundError

    known = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, LocalTokenNotFoundError, ConnectionError)
    try:
        yield
    except Exception as error:
        # which HTTP library carries the request depends on the version of the client
        if not isinstance(error, known) and type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "requests"):
            raise
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the hub answers: {told}", where=repo,
                        do="check the name, the connection and the login (`hf auth login`)") from error


def _hub() -> Hub:
    from huggingface_hub import HfApi

    api: Hub = HfApi(library_name="reprbasis")
    return api


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _json(value: Any) -> str:
    import json

    return json.dumps(value, indent=1, ensure_ascii=False)
