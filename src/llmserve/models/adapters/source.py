"""The sources of adapters: `dir:/PATH`, `hub:ORG/NAME` with `@REVISION`, `s3://BUCKET/PREFIX`."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from llmserve.core.errors import InvalidRequest

_SHAPES = "an adapter comes from dir:/PATH, hub:ORG/NAME (or hub:ORG/NAME@REVISION) or s3://BUCKET/PREFIX"
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_REVISION = re.compile(r"[\w.-][\w./-]*")
_S3 = re.compile(r"[a-z0-9][a-z0-9.-]*(/[^/?#\s]+)*")


class AdapterSourceKind(StrEnum):
    DIRECTORY = "dir"
    HUB = "hub"
    S3 = "s3"


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """place: an absolute path, ORG/NAME, or BUCKET/PREFIX. revision: of the hub; empty: its default branch.
    The text of a source is parsed to an equal one, so orders and the router's state carry the text."""

    kind: AdapterSourceKind
    place: str
    revision: str = ""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        separator = "://" if self.kind is AdapterSourceKind.S3 else ":"
        return f"{self.kind}{separator}{self.place}{at}"


def parse_adapter_source(text: str, revision: str | None = None) -> AdapterSource:
    """revision: `models.adapters[].revision`. Errors: InvalidRequest with the shapes that are known."""
    kind, place = _split(text)
    place, _, at = place.partition("@") if kind is AdapterSourceKind.HUB else (place, "", "")
    if at and revision and at != revision:
        raise _wrong(text, f"it names revision '{at}', and `revision` is '{revision}'")
    if revision and kind is not AdapterSourceKind.HUB:
        raise _wrong(text, "only sources of the hub have a revision")
    if not _is_place(kind, place) or not _REVISION.fullmatch(at or revision or "main"):
        raise _wrong(text, _SHAPES)
    return AdapterSource(
        kind, os.path.normpath(place) if place.startswith("/") else place, at or revision or ""
    )


def is_below(source: AdapterSource, roots: Iterable[str]) -> bool:
    """Returns whether a source is at or below one of `lora.allowed_sources`: `dir:/PATH`, `hub:ORG`,
    `hub:ORG/NAME`, `s3://BUCKET` or `s3://BUCKET/PREFIX`. Directories are compared as the paths that they
    really have, so neither `..` nor a symbolic link leads out of a root. Reads the file system."""
    return any(_contains(_split(root), source) for root in roots)


def _split(text: str) -> tuple[AdapterSourceKind, str]:
    for kind, prefix in ((AdapterSourceKind.S3, "s3://"), *((one, f"{one}:") for one in ("dir", "hub"))):
        if text.startswith(prefix):
            return AdapterSourceKind(kind), text.removeprefix(prefix).rstrip("/") or "/"
    raise _wrong(text, _SHAPES)


def _is_place(kind: AdapterSourceKind, place: str) -> bool:
    match kind:
        case AdapterSourceKind.DIRECTORY:
            return place.startswith("/") and "\0" not in place
        case AdapterSourceKind.HUB:
            return _HUB.fullmatch(place) is not None
        case AdapterSourceKind.S3:
            return _S3.fullmatch(place) is not None and ".." not in place.split("/")


def _contains(root: tuple[AdapterSourceKind, str], source: AdapterSource) -> bool:
    kind, place = root
    if kind is not source.kind:
        return False
    inner, outer = source.place, place
    if kind is AdapterSourceKind.DIRECTORY:
        inner, outer = os.path.realpath(inner), os.path.realpath(outer)
    return inner == outer or inner.startswith(f"{outer.rstrip('/')}/")


def _wrong(text: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"adapter source '{text}': {why}", field="source")
