"""Checks, before anything is made, whether this machine can have the manifest's `storageClasses`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from llmserve.config.conflict import Conflict
from llmserve.config.conflict import Path as KeyPath
from llmserve.config.schema import StorageClass
from llmserve.core.errors import StartFailed
from llmserve.kvstore.dram.arena import check_room, free_memory_bytes
from llmserve.kvstore.dram.shape import HUGE_PAGE_BYTES
from llmserve.kvstore.formats import KeyRing, KeySource

_GIB = 1 << 30
_CLASSES = "storageClasses"
_S3_MODULE = "obstore"


def key_sources(one: StorageClass) -> list[KeySource]:
    """Sources of the keys that encrypt the blocks of a class, the oldest first."""
    return [
        KeySource(key.id, Path(key.file) if key.file else None, key.env or "") for key in one.format.encrypt
    ]


def lasting_refusals(classes: Sequence[StorageClass], environment: Mapping[str, str]) -> Iterator[Conflict]:
    """Conflicts that another try would not cure: keys and packages. classes: all, in the manifest's order."""
    for at, one in enumerate(classes):
        yield from _keys(one, environment, (_CLASSES, at, "format", "encrypt"))
        if one.tier == "object" and find_spec(_S3_MODULE) is None:
            message = f"object storage needs {_S3_MODULE}: pip install 'llmserve[s3]'"
            yield Conflict(((_CLASSES, at, "tier"),), message)


def room_refusals(classes: Sequence[StorageClass]) -> Iterator[Conflict]:
    """Conflicts with memory and directories as they are now."""
    for at, one in enumerate(classes):
        if one.tier == "dram":
            yield from _memory(one, (_CLASSES, at, "capacity_gb"))
        if one.tier == "nvme" and one.location and (why := _unusable(Path(one.location))):
            yield Conflict(((_CLASSES, at, "location"),), why)


def _keys(one: StorageClass, environment: Mapping[str, str], path: KeyPath) -> Iterator[Conflict]:
    sources = key_sources(one)
    try:
        for at, source in enumerate(sources):
            path_of_key = (*path, at)
            source.read(environment)
        path_of_key = path
        if sources:
            KeyRing.load(sources, environment)
    except StartFailed as error:
        yield Conflict((path_of_key,), error.message)


def _memory(one: StorageClass, path: KeyPath) -> Iterator[Conflict]:
    try:
        check_room(int(one.capacity_gb * _GIB) + HUGE_PAGE_BYTES, free_memory_bytes())
    except StartFailed as error:
        yield Conflict((path,), error.message)


def _unusable(folder: Path) -> str:
    """Reason why blocks cannot be written there. The store makes the folder, with its parents, when it
    opens."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        return f"{there} is not a directory"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written by this user"
    return ""
