"""The one decision about who asks: headers -> Caller."""

from collections.abc import Iterable

from llmserve.apiserver.auth.caller import EVERYBODY, LOCAL_ADMIN, Caller
from llmserve.apiserver.auth.credential import credential_in
from llmserve.apiserver.auth.manifest_keys import ManifestKeys
from llmserve.core.errors import NotAuthenticated


class Authenticator:
    """manifest: the manifest's keys; may be replaced while it runs. Without any credentials configured,
    everybody is the default tenant, and who asks from this machine is an admin."""

    def __init__(self, manifest: ManifestKeys = ManifestKeys()) -> None:  # noqa: B008 - it never changes
        self.manifest = manifest

    @property
    def is_open(self) -> bool:
        """Whether everybody may ask, because there are no credentials."""
        return not self.manifest

    async def caller_of(self, headers: Iterable[tuple[bytes, bytes]], *, is_local: bool = False) -> Caller:
        """is_local: who asks is on this machine. Errors: NotAuthenticated."""
        if self.is_open:
            return LOCAL_ADMIN if is_local else EVERYBODY
        credential = credential_in(headers)
        found = self.manifest.find(credential.digest)
        if found is None:
            raise NotAuthenticated("the API key is not known")
        return found

    def check(self, caller: Caller) -> None:
        """Errors: NotAuthenticated when the key of a caller of before is not known any more, or is another
        tenant's."""
        if caller.key_digest is not None:
            self.manifest.check(caller)
