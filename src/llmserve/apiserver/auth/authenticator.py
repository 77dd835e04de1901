"""The one decision about who asks: headers -> Caller."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from llmserve.apiserver.auth.caller import EVERYBODY, LOCAL_ADMIN, Caller
from llmserve.apiserver.auth.credential import Credential, credential_in
from llmserve.apiserver.auth.manifest_keys import ManifestKeys
from llmserve.apiserver.auth.oidc.verifier import OidcVerifier
from llmserve.apiserver.auth.stores.live_keys import LiveKeys
from llmserve.apiserver.auth.stores.store import build_key_store
from llmserve.config.schema import Manifest
from llmserve.core.errors import NotAuthenticated
from llmserve.core.tasks import TaskOwner


class Authenticator:
    """Life: start (once) -> caller_of ... -> aclose (idempotent). manifest: the manifest's keys; may be
    replaced while it runs. stored: those of `llmserve keys`. oidc: tokens. Without any credentials
    configured, everybody is the default tenant, and who asks from this machine is an admin."""

    def __init__(
        self,
        manifest: ManifestKeys = ManifestKeys(),  # noqa: B008 - it never changes
        stored: LiveKeys | None = None,
        oidc: OidcVerifier | None = None,
    ) -> None:
        self.manifest, self._stored, self._oidc = manifest, stored, oidc

    @classmethod
    def of(
        cls, manifest: Manifest, keys: ManifestKeys, beside: Path, environ: Mapping[str, str] = os.environ
    ) -> "Authenticator":
        """keys: those of the manifest. beside: its directory. Errors: ManifestError."""
        store = build_key_store(manifest, environ, beside)
        issuers = manifest.security.oidc
        return cls(
            keys,
            None if store is None else LiveKeys(store),
            OidcVerifier(issuers) if issuers else None,
        )

    @property
    def is_open(self) -> bool:
        """Whether everybody may ask, because there are no credentials."""
        return not self.manifest and self._stored is None and self._oidc is None

    async def start(self, owner: TaskOwner) -> None:
        """owner: of the tasks that follow what changes. Whoever cannot be reached now is asked again."""
        if self._stored is not None:
            await self._stored.refresh()
            owner.spawn("keys", self._stored.follow(), fatal=True)  # else keys that are revoked go on
        if self._oidc is not None:
            await self._oidc.start(owner)

    async def caller_of(self, headers: Iterable[tuple[bytes, bytes]], *, is_local: bool = False) -> Caller:
        """is_local: who asks is on this machine. Errors: NotAuthenticated; Forbidden for a token that no
        rule lets in; Unavailable while what decides it cannot be reached."""
        if self.is_open:
            return LOCAL_ADMIN if is_local else EVERYBODY
        credential = credential_in(headers)
        found = self.manifest.find(credential.digest) or self._found_in_store(credential)
        if found is None and self._oidc is not None:
            found = await self._oidc.caller_of(credential)
        if found is None:
            raise NotAuthenticated("the API key is not known")
        return found

    def _found_in_store(self, credential: Credential) -> Caller | None:
        return None if self._stored is None else self._stored.find(credential)

    def check(self, caller: Caller) -> None:
        """Errors: NotAuthenticated when the key of a caller of before is not valid any more, or is another
        tenant's. A token is not asked for again."""
        if caller.key_digest is None or (self._stored is not None and self._stored.check(caller)):
            return
        self.manifest.check(caller)

    async def aclose(self) -> None:
        if self._oidc is not None:
            await self._oidc.aclose()
        if self._stored is not None:
            await self._stored.aclose()
