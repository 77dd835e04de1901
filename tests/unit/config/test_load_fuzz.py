"""Whatever the file holds, loading gives a manifest or a ManifestError, and every line of it a place."""

import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest
from llmserve.config.schema.section import walk
from llmserve.core.errors import ManifestError

PLACE = re.compile(r"m\.yaml:\d+: ")

keys = st.sampled_from(sorted({knob.path[-1] for knob in walk(Manifest)} | {"spec", "x"}))
scalars = st.none() | st.booleans() | st.integers(-5, 99999) | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=12,
)


def problems(text: str) -> list[str]:
    try:
        parse_manifest(text, "m.yaml")
    except ManifestError as error:
        return error.message.split("\n")
    return []


def load(text: str) -> None:
    for line in problems(text):
        assert PLACE.match(line), line


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(keys, values, max_size=8))
def test_any_data(data: dict[str, Any]) -> None:
    load(yaml.safe_dump({"kind": "LLMServe", **data}, allow_unicode=True))


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab: -[]{}&*<>!|'\"\n\t#,?%@`1.e~=", max_size=60))
def test_any_text(text: str) -> None:
    load(text)


@pytest.mark.parametrize(
    "text", ["? [a]\n: b", "<<: x", "<<: [1]", "a: &a\n  <<: *a", "!!int x: 1", "k: !!int x", '"a\\nb": 1']
)
def test_odd_yaml(text: str) -> None:
    load(text)
