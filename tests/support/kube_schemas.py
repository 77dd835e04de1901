"""The schemas of Kubernetes that kubernetes-validate has, read once: it reads them anew for each object."""

import functools
import json
import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import jsonschema
import kubernetes_validate
from kubernetes_validate import utils
from referencing import Registry, Resource

_read: Callable[[str, str], Any] = functools.cache(utils.schema_contents)


def versions() -> list[str]:
    """Of Kubernetes, from 1.28 to the newest that kubernetes-validate knows."""
    found = dict.fromkeys(utils.all_versions())  # each is there twice: strict, and not
    return [one for one in found if tuple(map(int, one.split("."))) >= (1, 28, 0)]


def validate(one: dict[str, Any], version: str) -> None:
    """Strictly. Errors: kubernetes_validate.ValidationError, SchemaNotFoundError."""
    plain = utils.schema_contents
    utils.schema_contents = _read
    try:
        kubernetes_validate.validate(one, version, strict=True)
    finally:
        utils.schema_contents = plain


@functools.cache
def schema_of(version: str, api_version: str, kind: str) -> dict[str, Any]:
    api = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema: dict[str, Any] = _file(version, f"{kind.lower()}-{api}.json")
    return schema


@functools.cache
def definitions(version: str) -> dict[str, Any]:
    """What the `$ref`s of schemas name, by the last part."""
    found: dict[str, Any] = _file(version, "_definitions.json")["$defs"]
    return found


def first_error(one: dict[str, Any], version: str) -> jsonschema.ValidationError | None:
    """Of a strict check, as kubernetes-validate's; None: the object is right."""
    errors = _validator(version, one["apiVersion"], one["kind"]).iter_errors(one)
    return jsonschema.exceptions.best_match(errors)


@functools.cache
def _validator(version: str, api_version: str, kind: str) -> jsonschema.Draft202012Validator:
    schema = Resource.from_contents(schema_of(version, api_version, kind))
    return jsonschema.Draft202012Validator(schema.contents, registry=schema @ _registry(version))


@functools.cache
def _registry(version: str) -> Registry[Any]:
    return Resource.from_contents(_file(version, "_definitions.json")) @ Registry()


def _file(version: str, name: str) -> Any:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}-local-strict"
    return json.loads((folder / name).read_text())
