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
    is_hub = kind is AdapterSourceKind.HUB
    if revision and not is_hub:
        raise _wrong(text, "only sources of the hub have a revision")
    place, at, own = place.partition("@") if is_hub else (place, "", "")
    if own and revision and own != revision:
        raise _wrong(text, f"it names revision '{own}', and `revision` is '{revision}'")
    wanted = own or revision or ""
    if not _is_place(kind, place) or ((at or wanted) and not _REVISION.fullmatch(wanted)):
        raise _wrong(text, _SHAPES)
    is_path = kind is AdapterSourceKind.DIRECTORY
    return AdapterSource(kind, os.path.normpath(place) if is_path else place, wanted)


@dataclass(frozen=True, slots=True)
class AllowedSources:
    """declared: texts of the sources in `models.adapters`. roots: `lora.allowed_sources`."""

    declared: frozenset[str] = frozenset()
    roots: tuple[str, ...] = ()

    def real_roots(self, source: AdapterSource) -> tuple[str, ...]:
        """Returns the real paths below which the files of a directory must be; empty: they may be anywhere.
        Errors: InvalidRequest when the source is not allowed."""
        if str(source) in self.declared:
            return ()
        matching = [root for root in self.roots if _contains(_split(root), source)]
        if not matching:
            raise _wrong(str(source), "is neither in models.adapters nor below one of lora.allowed_sources")
        is_directory = source.kind is AdapterSourceKind.DIRECTORY
        return tuple(os.path.realpath(_split(root)[1]) for root in matching) if is_directory else ()


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
            return _HUB.fullmatch(place) is not None and ".." not in place
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
