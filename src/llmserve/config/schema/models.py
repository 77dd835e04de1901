"""Sections `metadata` and `models`."""

import difflib
import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from llmserve.config.schema.section import ManifestSection, Planned

_SCHEMES = ("package", "hub", "dir", "gguf")


class Metadata(ManifestSection):
    """What the cluster is called."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
            description="Name of the cluster: lower-case letters, digits and `-`, at most 63.",
        ),
    ] = "llmserve"


class ModelSpec(ManifestSection):
    """Where a model comes from and what clients call it."""

    source: Annotated[
        str,
        Field(
            min_length=1,
            description="Where the weights are: `package:PYTHON_PACKAGE/FILE.gguf` (a GGUF file carried by "
            "an installed package), `hub:ORG/NAME` (Hugging Face), `dir:/PATH` (config.json and "
            "safetensors), or `gguf:/PATH/FILE.gguf`. Without a scheme, an existing path is a "
            "directory or GGUF file, and "
            "`ORG/NAME` is a hub id.",
        ),
    ]
    name: Annotated[
        str | None,
        Field(
            min_length=1, description="The model name in the API. Without it, the last part of the source."
        ),
    ] = None
    revision: Annotated[
        str | None,
        Field(
            min_length=1, description="Commit, tag or branch of a hub model. Without it, the default branch."
        ),
    ] = None

    @field_validator("source", mode="after")
    @classmethod
    def _known_scheme(cls, source: str) -> str:
        scheme, colon, rest = source.partition(":")
        if not colon or re.search(r"[/.]", scheme):
            return source
        if scheme not in _SCHEMES:
            raise PydanticCustomError("source", "{text}", {"text": _unknown_scheme(scheme)})
        if not rest.strip("/") or (scheme == "package" and "/" not in rest):
            raise PydanticCustomError("source", "{text}", {"text": _SHAPES[scheme]})
        return source

    @property
    def served_name(self) -> str:
        """What clients call the model."""
        if self.name is not None:
            return self.name
        last = PurePosixPath(self.source.partition(":")[2] or self.source).name
        return last.removesuffix(".gguf")


_SHAPES = {
    "package": "a packaged model is package:PYTHON_PACKAGE/FILE.gguf",
    "hub": "a hub model is hub:ORG/NAME",
    "dir": "a directory is dir:/PATH",
    "gguf": "a GGUF file is gguf:/PATH/FILE.gguf",
}


def _unknown_scheme(scheme: str) -> str:
    close = difflib.get_close_matches(scheme, _SCHEMES, n=1)
    hint = f"; did you mean '{close[0]}:'?" if close else ""
    return f"unknown source scheme '{scheme}:'; known are package:, hub:, dir: and gguf:{hint}"


class AdapterSpec(ManifestSection):
    """A LoRA adapter of the primary model."""

    name: Annotated[
        str, Field(min_length=1, description="The model name that selects the adapter in the API.")
    ]
    source: Annotated[str, Field(min_length=1, description="Where its weights are, as for a model.")]


class Models(ManifestSection):
    """What is served."""

    primary: Annotated[ModelSpec, Field(description="The model that answers.")]
    draft: Annotated[
        ModelSpec | None,
        Planned("speculative decoding"),
        Field(description="A small model that proposes tokens for the primary one to verify."),
    ] = None
    adapters: Annotated[
        tuple[AdapterSpec, ...],
        Planned("adapter serving"),
        Field(strict=False, description="LoRA adapters, each served under its own model name."),
    ] = ()
