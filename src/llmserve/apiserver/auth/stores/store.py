"""What a place of keys can do, and which one a manifest asks for. Implementations: FileKeys, RedisKeys."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from llmserve.apiserver.auth.stores.file import FileKeys
from llmserve.apiserver.auth.stores.redis import RedisKeys
from llmserve.apiserver.auth.stores.stored_key import StoredKey
from llmserve.config.schema import Manifest
from llmserve.rpc.redis_client import RedisAccess

_CALL_SECONDS = 5.0


class KeyStore(Protocol):
    """Any number of apiservers and commands use a place at the same time. Errors of all calls: Unavailable;
    InvalidRequest when what is there are no keys."""

    async def read(self) -> Sequence[StoredKey]:
        """Returns all keys. Called once a second, so it is cheap while nothing has changed."""

    async def add(self, key: StoredKey) -> None: ...

    async def remove(self, key_id: str) -> bool:
        """Returns whether there was such a key."""

    async def note_uses(self, used_at: Mapping[str, int]) -> None:
        """used_at: Unix time of each key's last use, by id. Later ones that were noted elsewhere stay."""

    async def aclose(self) -> None:
        """Idempotent."""


def build_key_store(manifest: Manifest, environ: Mapping[str, str], beside: Path) -> KeyStore | None:
    """beside: the directory of the manifest. Returns None when the manifest names no place of keys. Errors:
    ManifestError when the package or the password is missing."""
    place = manifest.security.keys
    if place is None:
        return None
    if place.file is not None:
        return FileKeys(beside / Path(place.file).expanduser())
    return RedisKeys(RedisAccess.of(manifest.state, environ, _CALL_SECONDS), manifest.metadata.name)
