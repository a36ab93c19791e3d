"""Field types for configs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ..sites import check_selector
from .report import complaint


class SiteSelectors:
    """Marks a field that holds site selectors: well-formed when validated, resolved against the model by stage 4."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}

    @staticmethod
    def _check(value: Any) -> str | tuple[str, ...]:
        given = (value,) if isinstance(value, str) else value
        if not isinstance(given, (list, tuple)) or not given or not all(isinstance(v, str) for v in given):
            raise complaint(f"{value!r} is neither a site selector nor a list of them",
                            'write for example ["resid.*", "embed"]')
        for selector in given:
            if problem := check_selector(selector):
                raise complaint(problem.what, problem.do)
        return value if isinstance(value, str) else tuple(given)


Sites = Annotated[str | tuple[str, ...], SiteSelectors()]
"""One site selector or several, see `reprbasis.sites.select`."""
