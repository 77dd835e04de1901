"""The store of keys that a manifest asks for."""

from collections.abc import Mapping
from pathlib import Path

from llmserve.apiserver.auth.stores.base import KeyStore
from llmserve.apiserver.auth.stores.file import FileKeys
from llmserve.config.conflict import Conflict, refuse
from llmserve.config.refusals import unset_password
from llmserve.config.schema import Manifest

_CALL_SECONDS = 5.0


def build_key_store(manifest: Manifest, environ: Mapping[str, str], beside: Path) -> KeyStore | None:
    """beside: the directory of the manifest. Returns None when the manifest names no place of keys. Errors:
    ManifestError when the package or the password is missing."""
    place, redis = manifest.security.keys, manifest.state.redis
    if place is None:
        return None
    if place.file is not None:
        return FileKeys(beside / Path(place.file).expanduser())
    assert redis is not None  # a rule of the manifest
    refuse(unset_password(manifest.state, environ))
    try:
        # Here: a cluster without Redis needs no package for it.
        from llmserve.apiserver.auth.stores.redis import RedisKeys
    except ModuleNotFoundError as error:
        message = f"redis needs a package: {error.msg}; pip install 'redis>=5'"
        raise Conflict((("security", "keys", "redis"),), message).as_error() from error
    password = environ[redis.password_env] if redis.password_env is not None else None
    return RedisKeys(
        redis.url, manifest.metadata.name, password=password, call_seconds=_CALL_SECONDS, ca=redis.ca
    )
