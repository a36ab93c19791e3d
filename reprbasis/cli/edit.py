"""`reprbasis edit`: make a model say otherwise, see what that did, and take it back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import json_argument, pick_model, print_json, selected, table

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import Selection
    from ..config.wishes import Wishes
    from ..interfaces.editor import EditPlan
    from ..interfaces.model import ModelAdapter
    from ..interfaces.tokens import Example
    from ..kits.probes import Neutral
    from ..registry import Registry
    from ..runtime.batches import Batches

SHOWN = {"wrong_top1": "says the new", "answer_top1": "says the old", "wrong_prob": "p(new)", "answer_prob": "p(old)",
         "kept": "as before"}
DEFAULT = "fact"
"""Editor of a request that names none."""
FILES = "reprbasis edit --revert FOLDER takes an exported model back; a plan changes nothing until it is applied"


def arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, REQUEST, --editor, --basis, --keep, --after, --out, --export, --seed, --json; or --revert."""
    parser.epilog = FILES
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a checkpoint, or with options: '{use: NAME, option: value}'")
    parser.add_argument("request", metavar="REQUEST", nargs="?",
                        help="'the capital of France is now Lyon', 'PROMPT -> TARGET', 'forget that X is Y', 'forget X', or a "
                             "YAML file")
    parser.add_argument("--editor", metavar="EDITOR",
                        help=f"by name, or '{{use: NAME, option: value}}' (default: what the file says, else {DEFAULT})")
    parser.add_argument("--basis", metavar="DIR", help="a saved basis, for editors that need one")
    parser.add_argument("--keep", metavar="CORPUS", help="texts on which nothing shall change: a corpus by name, or with options "
                                                         "(half of them is given to the editor, half is measured)")
    parser.add_argument("--texts", type=int, default=16, metavar="N", help="of --keep, both halves together (default: 16)")
    parser.add_argument("--after", metavar="PLAN", action="append", default=[], help="a plan already in force (repeatable)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of texts (default: 0)")
    parser.add_argument("--out", metavar="DIR", help="save the plan: the changes of weights alone, as safetensors")
    parser.add_argument("--export", metavar="DIR", help="save the edited model as a checkpoint")
    parser.add_argument("--revert", metavar="DIR", help="put the unedited weights back into an exported model, bit for bit")
    json_argument(parser)


def main(args: argparse.Namespace) -> int:
    """Read, edit, measure, save; or revert."""
    from ..errors import UserError

    if args.revert:
        return _revert(args)
    if args.model is None or args.request is None:
        raise UserError("a model and a request are needed", do="reprbasis edit MODEL 'the capital of X is now Y' --editor NAME")
    if args.texts < 2:
        raise UserError(f"--texts {args.texts} leaves nothing to measure on", do="give 2 or more")
    from ..config.wishes import read
    from ..discovery import default_registry

    registry = default_registry()
    wishes = read(args.request)
    editor = _editor(registry, args.editor, wishes)
    corpus = selected(registry, "corpus", args.keep, "--keep") if args.keep else None
    for folder in (args.out, args.export):
        if folder and Path(folder).exists():
            raise UserError("something is here already", where=folder, do="choose another folder")
    chosen = pick_model(registry, args.model)
    earlier = [_plan(folder) for folder in args.after]
    _check_earlier(wishes, earlier, args.after)

    from ..artifacts.edited import export_edited
    from ..artifacts.store import save
    from ..kits.probes import Neutral
    from ..runtime.wishes import asked

    model = registry.build(chosen)
    keep, held = _texts(registry, corpus, model, args, wishes)
    with ExitStack() as stack:
        for plan in earlier:
            stack.enter_context(plan.applied(model))
        what = asked(model, wishes.wishes, keep)
        neutral = Neutral(model, held)
        before = _measured(model, what.probes, neutral, {})
        made = registry.build(editor).edit(model, _basis(registry, editor, args.basis), what.request)
        with made.applied(model):
            after = _measured(model, what.probes, neutral, before)
    made = replace(made, details={**made.details, "wishes": [asdict(w) for w in wishes.wishes]})
    if args.out:
        save(made, args.out)
    if args.export:
        export_edited(model, [*earlier, made], args.export)
    if args.json:
        print_json({"model": chosen.dump(), "editor": editor.dump(), "details": made.details, "texts_measured": len(held),
                    "before": _means(before), "after": _means(after)})
        return 0
    _print(what.probes, before, after, len(held))
    print(_verdict(after, made))
    for option, folder in (("plan", args.out), ("model", args.export)):
        if folder:
            print(f"{option}: {folder}")
    return 0


def _revert(args: argparse.Namespace) -> int:
    from ..errors import UserError

    if args.model is not None:
        raise UserError("--revert takes a folder and nothing else", do="reprbasis edit --revert FOLDER")
    from ..artifacts.edited import revert_edited

    names = revert_edited(args.revert)
    if args.json:
        print_json({"reverted": names})
    else:
        print(f"{args.revert}: {len(names)} weights are what they were: {', '.join(names)}")
    return 0


def _editor(registry: Registry, given: str | None, wishes: Wishes) -> Selection:
    if given:
        return selected(registry, "editor", given, "--editor")
    return registry.select("editor", DEFAULT if wishes.editor is None else wishes.editor)


def _plan(folder: str) -> EditPlan:
    from ..artifacts.manifest import read_manifest
    from ..artifacts.store import load
    from ..errors import UserError
    from ..interfaces.editor import EditPlan

    if not (Path(folder) / "manifest.json").is_file():
        raise UserError("no saved edit plan is here", where=folder, do="give a folder that `reprbasis edit --out` has written")
    if (kind := read_manifest(Path(folder)).type) != EditPlan.type:
        raise UserError(f"this is a saved {kind}, not an edit plan", where=folder, do="give the folder of an edit plan")
    found = load(folder)
    assert isinstance(found, EditPlan)
    return found


def _check_earlier(wishes: Wishes, plans: Sequence[EditPlan], folders: Sequence[str]) -> None:
    from ..config.wishes import Wish, refuse_conflicts

    earlier = [Wish(w["prompt"], w["target"], where=folder) for plan, folder in zip(plans, folders, strict=True)
               for w in plan.details.get("wishes", ())]
    refuse_conflicts(wishes.wishes, tuple(earlier))


def _basis(registry: Registry, editor: Selection, folder: str | None) -> Any:
    """The basis; None for an editor that needs none."""
    from ..errors import UserError

    if folder is None:
        if registry.component("editor", editor.name).component.requires.get("learner"):
            raise UserError(f"the editor '{editor.name}' works on the latents of a basis", do="give --basis DIR")
        return None
    from .export import _basis as load_basis

    return load_basis(folder)


def _texts(registry: Registry, corpus: Selection | None, model: ModelAdapter[Any], args: argparse.Namespace,
           wishes: Wishes) -> tuple[list[Example], list[Example]]:
    """Texts for the editor, and texts to measure on."""
    from itertools import islice

    from ..interfaces.corpus import CorpusContext
    from ..interfaces.tokens import Example

    own = [Example(text=text, key=f"keep-{i}") for i, text in enumerate(wishes.keep)]
    if corpus is None:
        return (own[::2], own[1::2]) if len(own) > 1 else (own, [])
    found = list(islice(registry.build(corpus).examples(seed=args.seed, context=CorpusContext(model)), args.texts))
    return [*own, *found[::2]], found[1::2]


def _measured(model: ModelAdapter[Any], probes: Mapping[str, Batches], neutral: Neutral,
              before: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    from ..kits.probes import rows

    found = {name: rows(model, batches) for name, batches in probes.items()}
    for name, here in found.items():
        here["kept"] = (here["top"] == before.get(name, here)["top"]).double()
    if len(neutral.group):
        found["texts"] = {"kl": neutral.kl(model)}
    return found


def _means(found: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, float]]:
    return {probe: {name: float(x.mean()) for name, x in here.items() if name != "top"} for probe, here in found.items()}


def _print(probes: Mapping[str, Batches], before: Mapping[str, Mapping[str, Tensor]], after: Mapping[str, Mapping[str, Tensor]],
           texts: int) -> None:
    lines = []
    for name, batches in probes.items():
        measures = SHOWN if name != "neighbours" else {"kept": SHOWN["kept"], "answer_prob": "p(its answer)"}
        lines += [(f"{name} ({batches.n})", told, f"{float(before[name][m].mean()):.3f}", f"{float(after[name][m].mean()):.3f}")
                  for m, told in measures.items()]
    if texts:
        lines.append((f"texts ({texts})", "KL divergence, nats a token", "0", f"{float(after['texts']['kl'].mean()):.4f}"))
    table(("prompts (n)", "measure", "before", "after"), lines)
    missing = [what for what, there in (("paraphrases (`paraphrases:`)", "paraphrases" in probes),
                                        ("neighbours (`neighbours:`)", "neighbours" in probes),
                                        ("texts to keep (--keep, `keep:`)", bool(texts))) if not there]
    if missing:
        print(f"not measured, because none were given: {', '.join(missing)}")


def _verdict(after: Mapping[str, Mapping[str, Tensor]], plan: EditPlan) -> str:
    fitted = after["fitted"]
    wishes = plan.details["wishes"]
    name = "wrong_top1" if any(w["target"] is not None for w in wishes) else "answer_top1"
    done = fitted[name] if name == "wrong_top1" else 1 - fitted[name]
    what = "now go on as asked" if name == "wrong_top1" else "no longer go on as before"
    return f"{int(done.sum())} of {len(done)} fitted prompts {what}; what was fitted proves nothing: look at the other lines"
