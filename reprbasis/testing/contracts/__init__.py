"""One conformance suite per kind of component. Needs pytest (`pip install reprbasis[testing]`)."""

import pytest

from ...component import KINDS

pytest.register_assert_rewrite(*(f"{__name__}.{suite}" for suite in ("base", *KINDS)))
