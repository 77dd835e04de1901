"""The store of keys that a manifest asks for."""

from collections.abc import Mapping
from pathlib import Path

from llmserve.apiserver.auth.stores.base import KeyStore
from llmserve.apiserver.auth.stores.file import FileKeys
from llmserve.apiserver.auth.stores.redis import RedisKeys
from llmserve.config.schema import Manifest
from llmserve.rpc.redis_client import RedisAccess

_CALL_SECONDS = 5.0


def build_key_store(manifest: Manifest, environ: Mapping[str, str], beside: Path) -> KeyStore | None:
    """beside: the directory of the manifest. Returns None when the manifest names no place of keys. Errors:
    ManifestError when the package or the password is missing."""
    place = manifest.security.keys
    if place is None:
        return None
    if place.file is not None:
        return FileKeys(beside / Path(place.file).expanduser())
    return RedisKeys(RedisAccess.of(manifest.state, environ, _CALL_SECONDS), manifest.metadata.name)
