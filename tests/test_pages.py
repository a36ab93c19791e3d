"""Parts of pages: text stays text."""

import json
import math

import pytest

from reprbasis.kits.pages import embed, escape, fill
from reprbasis.testing.contracts.reporter import HOSTILE


def test_numbers_that_json_does_not_know():
    assert embed({"a": [math.nan, math.inf, -math.inf, 1.5, True, None]}) == '{"a":[null,null,null,1.5,true,null]}'


def test_hostile_text_stays_text():
    text = embed({"t": HOSTILE})
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"t": HOSTILE}
    assert not set("<>\"'\x00") & set(escape(HOSTILE))


def test_placeholders_inside_parts_stay():
    assert fill("a {{X}} b {{Y}}", {"X": "{{Y}}", "Y": "y"}) == "a {{Y}} b y"
    with pytest.raises(KeyError, match="Z"):
        fill("{{Z}}", {})
