"""One conformance suite per kind of component. Needs pytest (`pip install reprbasis[testing]`)."""

import pytest

pytest.register_assert_rewrite(__name__)
