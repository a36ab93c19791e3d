"""The hooks a plugin may implement. There is one: everything a plugin offers it offers as a `Component`.

A declaration module marks its function with `@hookimpl`::

    from reprbasis import Component, hookimpl

    @hookimpl
    def reprbasis_register(register):
        register(Component(kind="learner", name="my-sae", ...))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pluggy

from .component import Component

PROJECT: Final = "reprbasis"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(historic=True)
def reprbasis_register(register: Callable[[Component], None]) -> None:
    """Offer components: call `register(Component(...))` once for each.

    Called once per plugin, while it is being discovered. The module that implements it must not import torch or
    transformers: name the implementation by the string `factory="package.module:Class"`. If the function raises, none of
    this plugin's components is registered and `reprbasis plugins doctor` shows the error.
    """
