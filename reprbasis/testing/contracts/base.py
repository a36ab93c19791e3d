"""What every component must do, whatever its kind. Each suite of a kind derives from `ComponentContract`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

import reprbasis
from reprbasis.component import CAPABILITIES, ComponentConfig
from reprbasis.errors import near
from reprbasis.registry import Registered

_HEAVY = ("torch", "transformers")


class ComponentContract:
    """Subclass the suite of your kind in your tests and name your component. Every `test_*` method here is a law.

    A law that truly cannot hold for a component is left out by naming it in `exempt` with the reason; a law that is
    overridden or removed in any other way is refused when the class is defined.

    Attributes:
        kind: set by the suite of the kind.
        name: the component under test, as written in a config.
        config: its options for the tests; choose small ones, the laws run many times.
        exempt: law -> the reason why it cannot hold for this component.
    """

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""
    config: ClassVar[Mapping[str, Any]] = {}
    exempt: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        laws = laws_of(cls)
        for law, reason in cls.exempt.items():
            if law not in laws:
                raise TypeError(f"{cls.__name__}.exempt names '{law}', which is no law; {near(law, laws)}")
            if not reason.strip():
                raise TypeError(f"{cls.__name__}.exempt gives no reason for '{law}'")
        if _own(cls):
            return
        for law, original in laws.items():
            if getattr(cls, law, None) is not original and law not in cls.exempt:
                raise TypeError(f"{cls.__name__} replaces the law '{law}'; name it in `exempt` with the reason, "
                                "and give your own test another name")

    @pytest.fixture(autouse=True)
    def _skip_exempt(self, request: pytest.FixtureRequest) -> None:
        reason = self.exempt.get(request.node.originalname)
        if reason:
            pytest.skip(f"exempt: {reason}")

    @property
    def registered(self) -> Registered:
        """The component as the registry knows it."""
        return reprbasis.registry().component(self.kind, self.name)

    def options(self) -> dict[str, Any]:
        """The options for the tests; override it when they must be computed."""
        return dict(self.config)

    def make_config(self, **changes: Any) -> ComponentConfig:
        """The component's validated config."""
        return self.registered.component.config(**{**self.options(), **changes})

    def create(self, **changes: Any) -> Any:
        """The component under test, with some options changed."""
        return reprbasis.create(self.kind, self.name, **{**self.options(), **changes})

    def test_declaration_needs_no_torch(self) -> None:
        """Listing plugins must stay quick. If it fails, move the import it names into the module of the factory."""
        code = ("import json, sys, reprbasis\n"
                f"found = reprbasis.registry().component({self.kind!r}, {self.name!r})\n"
                f"print(json.dumps([found.full_name, [m for m in {_HEAVY!r} if m in sys.modules]]))")
        environment = {**os.environ, "REPRBASIS_PLUGINS": self.registered.origin}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment,
                              check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [self.registered.full_name, []]

    def test_declaration_is_complete(self) -> None:
        """The registry must accept the declaration. If it fails, mend the part of `Component(...)` that is shown."""
        component = self.registered.component
        assert component.faults() == []
        assert component.summary.strip()
        assert set(component.provides) <= set(CAPABILITIES)

    def test_factory_implements_the_interface(self) -> None:
        """The factory must be a subclass of the kind's interface and have every abstract method."""
        cls = reprbasis.registry().load(self.kind, self.name)
        assert not getattr(cls, "__abstractmethods__", None), f"{cls.__name__} lacks {sorted(cls.__abstractmethods__)}"
        own = getattr(cls, "provides", None)
        assert own is None or set(own) == set(self.registered.component.provides), \
            "the class and its declaration name different capabilities"

    def test_every_option_is_described(self) -> None:
        """Options are documented where they are defined. If it fails, write a docstring under the field it names."""
        fields = self.registered.component.config.model_fields
        assert [name for name, field in fields.items() if not (field.description or "").strip()] == []

    def test_unknown_option_is_refused(self) -> None:
        """A misspelled option must not be ignored. If it fails, derive the config from `reprbasis.ComponentConfig`."""
        with pytest.raises(ValidationError, match="no_such_option"):
            self.make_config(no_such_option=1)

    def test_config_survives_json(self) -> None:
        """Manifests store the config. If it fails, use field types that JSON can hold and give back."""
        config = self.make_config()
        assert type(config).model_validate_json(config.model_dump_json()) == config

    def test_config_is_frozen(self) -> None:
        """A config describes a run, so it must not change during one. If it fails, leave `model_config` as it is."""
        config = self.make_config()
        for name in type(config).model_fields:
            with pytest.raises(ValidationError):
                setattr(config, name, getattr(config, name))


def laws_of(cls: type) -> dict[str, Any]:
    """The laws that bind a suite: every `test_*` function of the conformance kit's own classes among its bases."""
    laws: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if _own(base):
            laws |= {name: value for name, value in vars(base).items() if name.startswith("test_") and callable(value)}
    return laws


def _own(cls: type) -> bool:
    return cls.__module__.startswith("reprbasis.testing.")
