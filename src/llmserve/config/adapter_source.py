"""The sources of adapters, `dir:/PATH`, `hub:ORG/NAME` with `@REVISION` and `s3://BUCKET/PREFIX`, and which
of them are allowed. Directories are compared by the paths that they really have, so that neither `..` nor a
symbolic link leads out of a root."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from llmserve.core.errors import InvalidRequest

_SHAPES = "an adapter comes from dir:/PATH, hub:ORG/NAME (or hub:ORG/NAME@REVISION) or s3://BUCKET/PREFIX"
_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
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
    """Without a scheme, an absolute path is a directory, and ORG/NAME is an id of the hub. revision:
    `models.adapters[].revision`. Errors: InvalidRequest with the shapes that are known."""
    kind, place = _split(_with_scheme(text), text)
    is_hub = kind is AdapterSourceKind.HUB
    if revision and not is_hub:
        raise _wrong(text, "only sources of the hub have a revision")
    place, at, own = place.partition("@") if is_hub else (place, "", "")
    if own and revision and own != revision:
        raise _wrong(text, f"it names revision '{own}', and `revision` is '{revision}'")
    wanted = own or revision or ""
    if not _is_place(kind, place) or ((at or wanted) and not _REVISION.fullmatch(wanted)):
        raise _wrong(text, _SHAPES)
    if is_hub and "/" not in place:
        raise _wrong(text, _SHAPES)
    return AdapterSource(kind, place, wanted)


def parse_adapter_root(text: str) -> AdapterSource:
    """Parses what sources may be below, an item of `lora.allowed_sources`. Unlike a source, it may be a whole
    organization of the hub. Errors: InvalidRequest."""
    kind, place = _split(text, text)
    if not _is_place(kind, place):
        raise _wrong(text, "a root of sources is dir:/PATH, hub:ORG, hub:ORG/NAME or s3://BUCKET/PREFIX")
    return AdapterSource(kind, place)


def is_below(source: AdapterSource, roots: Iterable[str]) -> bool:
    """Returns whether a source is at or below one of `lora.allowed_sources`. Reads the file system. Errors:
    InvalidRequest for a root that is none."""
    return any(_contains(parse_adapter_root(root), source) for root in roots)


def is_in(inner: str, outer: str) -> bool:
    """Returns whether a path is at or below another one. It compares words, and follows no links."""
    return inner == outer or inner.startswith(f"{outer.rstrip('/')}/")


@dataclass(frozen=True, slots=True)
class AllowedSources:
    """The sources that are allowed, as a worker knows them from its start. declared: texts of the sources in
    `models.adapters`. roots: `lora.allowed_sources`."""

    declared: frozenset[str] = frozenset()
    roots: tuple[str, ...] = ()

    def real_roots(self, source: AdapterSource) -> tuple[str, ...]:
        """Returns the real paths of this host below which the files of a directory must be; empty: they may
        be anywhere. Routers order only what is allowed. A directory that is below no root
        here was declared after this worker had started, so its files must be its own."""
        if source.kind is not AdapterSourceKind.DIRECTORY or str(source) in self.declared:
            return ()
        roots = [root for root in map(parse_adapter_root, self.roots) if root.kind is source.kind]
        outer = tuple(os.path.realpath(root.place) for root in roots if is_in(source.place, root.place))
        return outer or (os.path.realpath(source.place),)


def _with_scheme(text: str) -> str:
    if text.startswith("/"):
        return f"{AdapterSourceKind.DIRECTORY}:{text}"
    is_hub_id = "/" in text and _HUB.fullmatch(text.partition("@")[0])
    return f"{AdapterSourceKind.HUB}:{text}" if is_hub_id else text


def _split(text: str, written: str) -> tuple[AdapterSourceKind, str]:
    """written: as the user has it."""
    kind, _, rest = text.partition(":")
    place = rest.rstrip("/") or rest[:1]
    if kind == AdapterSourceKind.DIRECTORY and place.startswith("/"):
        return AdapterSourceKind.DIRECTORY, os.path.normpath(f"/{place.lstrip('/')}")
    if kind == AdapterSourceKind.HUB:
        return AdapterSourceKind.HUB, place
    if kind == AdapterSourceKind.S3 and place.startswith("//"):
        return AdapterSourceKind.S3, place.removeprefix("//")
    raise _wrong(written, _SHAPES)


def _is_place(kind: AdapterSourceKind, place: str) -> bool:
    match kind:
        case AdapterSourceKind.DIRECTORY:
            return "\0" not in place
        case AdapterSourceKind.HUB:
            return _HUB.fullmatch(place) is not None and ".." not in place
        case AdapterSourceKind.S3:
            return _S3.fullmatch(place) is not None and ".." not in place.split("/")


def _wrong(text: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"adapter source '{text}': {why}", field="source")


def _contains(root: AdapterSource, source: AdapterSource) -> bool:
    if root.kind is not source.kind:
        return False
    if root.kind is AdapterSourceKind.DIRECTORY:
        return is_in(os.path.realpath(source.place), os.path.realpath(root.place))
    return is_in(source.place, root.place)
