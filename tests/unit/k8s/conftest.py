"""Manifests to render."""

import textwrap
from collections.abc import Callable

import pytest

from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest
from llmserve.k8s.render import Object, RenderTarget, render

Parse = Callable[[str], Manifest]
Render = Callable[[Manifest], dict[str, Object]]

HEAD = """\
kind: LLMServe
metadata: {name: demo}
models: {primary: {source: "hub:org/model"}}
"""


@pytest.fixture
def parse() -> Parse:
    return lambda text: parse_manifest(HEAD + textwrap.dedent(text), "demo.yaml")


@pytest.fixture
def rendered() -> Render:
    """The objects by `KIND NAME`."""

    def by_title(manifest: Manifest) -> dict[str, Object]:
        objects = render(manifest, RenderTarget("prod", "registry/llmserve:1"))
        return {f"{one['kind']} {one['metadata']['name']}": one for one in objects}

    return by_title
