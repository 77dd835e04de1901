"""Sections `metadata` and `models` with one model."""

import difflib
import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from llmserve.config.adapter_source import parse_adapter_source
from llmserve.config.schema.section import Live, ManifestSection, refusing

_SHAPES = {
    "package": "a packaged model is package:PYTHON_PACKAGE/FILE.gguf",
    "hub": "a hub model is hub:ORG/NAME",
    "dir": "a directory is dir:/PATH",
    "gguf": "a GGUF file is gguf:/PATH/FILE.gguf",
}


class Metadata(ManifestSection):
    """The name of the cluster."""

    name: str = Field(default="llmserve", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """The name consists of at most 63 lower-case letters, digits and `-`."""


class ModelSpec(ManifestSection):
    """The source of a model and its name for clients."""

    source: str = Field(min_length=1)
    """The source of the weights is `package:PYTHON_PACKAGE/FILE.gguf` (a GGUF file in an installed package),
    `hub:ORG/NAME` (Hugging Face), `dir:/PATH` (config.json and safetensors), or `gguf:/PATH/FILE.gguf`.
    Without a scheme, an existing path is a directory or GGUF file, and `ORG/NAME` is a hub id."""
    name: str | None = Field(default=None, min_length=1)
    """Clients use this model name. Without it, the name is the last part of the source."""
    revision: str | None = Field(default=None, min_length=1)
    """A hub model is loaded from this commit, tag or branch. Without it, the default branch is used."""

    @field_validator("source", mode="after")
    @classmethod
    def _known_scheme(cls, source: str) -> str:
        scheme, colon, rest = source.partition(":")
        if not colon or re.search(r"[/.]", scheme):
            return source
        if scheme not in _SHAPES:
            raise PydanticCustomError("source", "{text}", {"text": _unknown_scheme(scheme)})
        if not rest.strip("/") or (scheme == "package" and "/" not in rest):
            raise PydanticCustomError("source", "{text}", {"text": _SHAPES[scheme]})
        return source

    @property
    def served_name(self) -> str:
        """The name that clients use for the model."""
        if self.name is not None:
            return self.name
        last = PurePosixPath(self.source.partition(":")[2] or self.source).name
        return last.removesuffix(".gguf")


def _unknown_scheme(scheme: str) -> str:
    close = difflib.get_close_matches(scheme, _SHAPES, n=1)
    hint = f"; did you mean '{close[0]}:'?" if close else ""
    return f"unknown source scheme '{scheme}:'; known are package:, hub:, dir: and gguf:{hint}"


class AdapterSpec(ManifestSection):
    """A LoRA adapter of a model."""

    name: str = Field(min_length=1)
    """Clients select the adapter with this model name."""
    source: str = Field(min_length=1)
    """The source of the adapter is `dir:/PATH`, `hub:ORG/NAME` or `s3://BUCKET/PREFIX`: a directory with
    `adapter_config.json` and `adapter_model.safetensors` of PEFT."""
    revision: str | None = Field(default=None, min_length=1)
    """An adapter of the hub is loaded from this commit, tag or branch."""
    pin: bool = False
    """The adapter stays in shared memory, however long it is not used."""
    prefetch: bool = True
    """Workers fetch the adapter when they start. Otherwise one of them does, to check
    it, and the others at its first request."""

    @field_validator("source", mode="after")
    @classmethod
    def _known_source(cls, source: str) -> str:
        with refusing("source"):
            parse_adapter_source(source)
        return source


class Models(ManifestSection):
    """The model that is served, with what belongs to it. A list of models stands here instead to serve
    several ([models.md](models.md))."""

    primary: ModelSpec
    """The model that answers."""
    draft: ModelSpec | None = None
    """A small model that proposes tokens, which the primary model verifies, together with
    `engine.speculative_tokens`: the short form of `engine.speculation`."""
    adapters: Annotated[tuple[AdapterSpec, ...], Live(("router",))] = Field(default=(), strict=False)
    """LoRA adapters, each of which is served under its own model name."""
