"""Sites under the names that other libraries give them."""

import re

from reprbasis.errors import UserError
from reprbasis.sites import Site

_HOOKS = {"resid": "blocks.{}.hook_resid_post", "attn_out": "blocks.{}.hook_attn_out", "mlp_out": "blocks.{}.hook_mlp_out",
          "embed": "blocks.0.hook_resid_pre", "final": "unembed.hook_in"}
_MODULES = {"resid": "layers.{}", "attn_out": "layers.{}.self_attn", "mlp_out": "layers.{}.mlp", "embed": "embed_tokens",
            "final": "norm"}
_MODULE = re.compile(r"^(?:.*\.)?(?:layers|h|blocks)[._](\d+)(?:\.(self_attn|attention|attn|mlp))?$")


def hook(site: Site) -> str | None:
    """The TransformerLens name of a site (`blocks.3.hook_resid_post`), None where there is none."""
    pattern = _HOOKS.get(site.name)
    return pattern.format(site.layer) if pattern else None


def of_hook(name: str | None) -> Site | None:
    """The site that a TransformerLens hook shows, None if it is not part of the residual stream."""
    if name in ("hook_embed", "blocks.0.hook_resid_pre"):
        return Site("embed")
    if name == _HOOKS["final"]:
        return Site("final")
    found = re.fullmatch(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|attn_out|mlp_out)", name or "")
    if not found:
        return None
    layer = int(found[1])
    return Site("resid", layer - 1) if found[2] == "resid_pre" else Site(found[2].removesuffix("_post"), layer)


def module(site: Site) -> str:
    """The module of a Llama-type Transformers model whose output a site is (`layers.3.mlp`), or else the site's own name."""
    return _MODULES.get(site.name, str(site)).format(site.layer)


def of_module(name: str) -> Site | None:
    """The site of a module path such as `layers.3.mlp` or `embed_tokens`, None if it is something else."""
    if name.rpartition(".")[2] in ("embed_tokens", "embed_in", "wte"):
        return Site("embed")
    if name == _MODULES["final"]:
        return Site("final")
    found = _MODULE.match(name)
    if not found:
        return None
    kind = {None: "resid", "mlp": "mlp_out"}.get(found[2], "attn_out")
    return Site(kind, int(found[1]))


def choose(wanted: str | None, note: str | None, found: Site | None, told: str, where: str) -> Site:
    """The site of an imported dictionary: what the user says, else what an export of ours noted, else what the format names.

    Raises:
        UserError: none of them names a site.
    """
    if wanted or note:
        return Site.parse(str(wanted or note))
    if found is None:
        raise UserError(f"{told} is not a site of the residual stream", where=where,
                        do="say which site it is, for example --set site=resid.12")
    return found
