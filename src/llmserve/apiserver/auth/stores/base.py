"""What a place of keys can do. Implementations: FileKeys, RedisKeys."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from llmserve.apiserver.auth.stores.stored_key import StoredKey


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
