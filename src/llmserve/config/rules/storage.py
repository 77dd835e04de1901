"""Refuses storage classes that cannot keep blocks, and settings of stored blocks without them. Pure."""

from collections.abc import Iterator, Mapping

from llmserve.config.conflict import Conflict, Path
from llmserve.config.schema import Manifest, StorageClass

_CLASSES = "storageClasses"
_URLS = ("s3://", "gs://", "az://", "file:///")
_S3 = ("endpoint", "region")
# The keys that have no effect in a class of this tier, and why.
_REFUSED: Mapping[str, Mapping[str, str]] = {
    "dram": {
        "location": "a dram class is in memory",
        "endpoint": "is of object classes",
        "region": "is of object classes",
        "write": "every block is written to dram first",
    },
    "nvme": {"endpoint": "is of object classes", "region": "is of object classes"},
    "object": {},
}


def _storage_classes(manifest: Manifest) -> Iterator[Conflict]:
    """Checks all classes together, and each alone."""
    classes = manifest.storageClasses
    yield from _counts(classes)
    yield from _twice(classes, "name")
    yield from _twice(classes, "location")
    for index, one in enumerate(classes):
        yield from _one(one, (_CLASSES, index))


def _needs_storage(manifest: Manifest) -> Iterator[Conflict]:
    """Refuses settings of stored blocks when no class could store any."""
    if manifest.storageClasses:
        return
    cache, keys = manifest.kv_cache, manifest.security.api_keys
    wishes: dict[Path, object] = {
        ("kv_cache", "hot_keep_secs"): cache.hot_keep_secs,
        ("kv_cache", "tenant_hotset_gb"): cache.tenant_hotset_gb,
    }
    wishes |= {("security", "api_keys", at, "kv_quota_gb"): key.kv_quota_gb for at, key in enumerate(keys)}
    for path, value in wishes.items():
        if value:
            yield Conflict((path, (_CLASSES,)), "there are no storageClasses that could keep blocks")


def _quotas(manifest: Manifest) -> Iterator[Conflict]:
    """Refuses different quotas at several keys of one tenant."""
    first: dict[str, tuple[int, float]] = {}
    for index, key in enumerate(manifest.security.api_keys):
        if key.kv_quota_gb is None:
            continue
        at, quota = first.setdefault(key.tenant, (index, key.kv_quota_gb))
        if quota != key.kv_quota_gb:
            path: Path = ("security", "api_keys", index, "kv_quota_gb")
            message = f"tenant '{key.tenant}' has {quota:g} at security.api_keys[{at}]; say it once"
            yield Conflict((path, ("security", "api_keys", at, "kv_quota_gb")), message)


def _counts(classes: tuple[StorageClass, ...]) -> Iterator[Conflict]:
    of_tier = {tier: [at for at, one in enumerate(classes) if one.tier == tier] for tier in _REFUSED}
    if classes and not of_tier["dram"]:
        yield Conflict(((_CLASSES,),), "one class must be of tier dram: blocks pass through it")
    for tier in ("dram", "nvme"):
        for at in of_tier[tier][1:]:
            first = of_tier[tier][0]
            message = f"storageClasses[{first}] is of tier {tier}; there is one at most"
            yield Conflict(((_CLASSES, at, "tier"), (_CLASSES, first, "tier")), message)


def _twice(classes: tuple[StorageClass, ...], key: str) -> Iterator[Conflict]:
    first: dict[str, int] = {}
    for index, one in enumerate(classes):
        value = getattr(one, key)
        if value is None:
            continue
        at = first.setdefault(value.rstrip("/"), index)
        if at != index:
            yield Conflict(
                ((_CLASSES, index, key), (_CLASSES, at, key)), f"is that of storageClasses[{at}], too"
            )


def _one(one: StorageClass, path: Path) -> Iterator[Conflict]:
    tier: Path = (*path, "tier")
    for key, why in _REFUSED[one.tier].items():
        if getattr(one, key) != type(one).model_fields[key].default:
            yield Conflict(((*path, key), tier), why)
    if one.tier == "dram" and (one.format.compress != "none" or one.format.encrypt):
        message = "workers copy dram themselves, and only quantize: compress and encrypt in a class below"
        yield Conflict(((*path, "format"), tier), message)
    if wrong := _wrong_location(one):
        where = path if one.location is None else (*path, "location")
        yield Conflict((where, tier), wrong)
    if one.location and not one.location.startswith("s3://"):
        for key in _S3:
            if one.tier == "object" and getattr(one, key) is not None:
                yield Conflict(((*path, key), (*path, "location")), "is of s3:// locations")
    yield from _keys(one, (*path, "format", "encrypt"))


def _wrong_location(one: StorageClass) -> str:
    location = one.location
    if one.tier == "nvme" and location is None:
        return "an nvme class needs a location: a directory of its own, such as /var/lib/llmserve/kv"
    if one.tier == "nvme" and location and not location.startswith("/"):
        return "the location of an nvme class is a directory, as an absolute path"
    if one.tier == "object" and location is None:
        return "an object class needs a location: a URL such as s3://BUCKET/PREFIX"
    if one.tier == "object" and location and not location.startswith(_URLS):
        return f"the location of an object class is a URL of {', '.join(_URLS)}"
    return ""


def _keys(one: StorageClass, path: Path) -> Iterator[Conflict]:
    ids = [key.id for key in one.format.encrypt]
    for index, key in enumerate(one.format.encrypt):
        if (key.env is None) == (key.file is None):
            how = "has no key; set env or file" if key.env is None else "has both env and file; keep one"
            yield Conflict(((*path, index),), how)
        if ids.index(key.id) != index:
            yield Conflict(((*path, index, "id"),), f"is the id of encrypt[{ids.index(key.id)}], too")


RULES = (_storage_classes, _needs_storage, _quotas)
