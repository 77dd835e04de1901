"""The keys of a store as an apiserver knows them: a second old at most, and the last ones while the store
does not answer."""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable

from llmserve.apiserver.auth.caller import Caller
from llmserve.apiserver.auth.credential import Credential
from llmserve.apiserver.auth.stores.store import KeyStore
from llmserve.apiserver.auth.stores.stored_key import StoredKey, id_in
from llmserve.core.errors import LLMServeError, NotAuthenticated, Unavailable

_log = logging.getLogger(__name__)

_REFRESH_SECONDS = 1.0
_NOTE_SECONDS = 60.0  # last uses are written so often at most, and are rounded to this
_UNKNOWN, _GONE, _EXPIRED = (
    f"the API key {what}" for what in ("is not known", "is not known any more", "has expired")
)


class LiveKeys:
    """Life: refresh, then follow for as long as keys are checked -> aclose. now: Unix time."""

    def __init__(self, store: KeyStore, now: Callable[[], float] = time.time) -> None:
        self._store, self._now = store, now
        self._keys: dict[str, tuple[StoredKey, Caller]] | None = None  # None: the store was never read
        self._used_at: dict[str, int] = {}  # what is not written yet
        self._problem = ""

    def find(self, credential: Credential) -> Caller | None:
        """Returns whose key it is; None: it does not look like one of these. Errors: NotAuthenticated;
        Unavailable while no key was read yet."""
        name = id_in(credential.text)
        if not name:
            return None
        if self._keys is None:
            raise Unavailable("the keys cannot be read yet", retry_after_seconds=_REFRESH_SECONDS)
        key, caller = self._known(name, credential.digest, _UNKNOWN)
        now = self._now()
        if key.has_expired(now):
            raise NotAuthenticated(_EXPIRED)
        self._used_at[name] = int(now // _NOTE_SECONDS * _NOTE_SECONDS)
        return caller

    def check(self, caller: Caller) -> bool:
        """caller: one of before, with a key. Returns whether the key is one of these. Errors:
        NotAuthenticated when it is not valid any more, or is another tenant's."""
        if self._keys is None or caller.key_id not in self._keys:
            return False
        key, owner = self._known(caller.key_id, bytes.fromhex(caller.key_digest or ""), _GONE)
        if owner.tenant != caller.tenant or key.has_expired(self._now()):
            raise NotAuthenticated(_GONE)
        return True

    def _known(self, name: str, digest: bytes, otherwise: str) -> tuple[StoredKey, Caller]:
        found = (self._keys or {}).get(name)
        if found is None or not hmac.compare_digest(found[0].digest, digest):
            raise NotAuthenticated(otherwise)
        return found

    async def refresh(self) -> None:
        """Reads the store. While it does not answer, what was read before counts."""
        try:
            keys = await self._store.read()
        except LLMServeError as error:
            self._warn(error.message)
        else:
            self._keys, self._problem = {key.id: (key, key.caller) for key in keys}, ""

    async def note_uses(self) -> None:
        """Writes the last uses of keys."""
        noted, self._used_at = self._used_at, {}
        if not noted:
            return
        try:
            await self._store.note_uses(noted)
        except LLMServeError as error:  # a file of a Secret, for example, is read-only
            _log.debug("last uses of keys are not noted: %s", error.message)

    async def follow(self) -> None:
        """Refreshes for ever."""
        noted_at = self._now()
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            await self.refresh()
            if self._now() - noted_at >= _NOTE_SECONDS:
                noted_at = self._now()
                await self.note_uses()

    async def aclose(self) -> None:
        await self.note_uses()
        await self._store.aclose()

    def _warn(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("%s", problem)
        self._problem = problem
