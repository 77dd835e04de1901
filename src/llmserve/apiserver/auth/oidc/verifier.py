"""The tokens of all issuers. One that was checked is known again by its digest until it expires."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jwt

from llmserve.apiserver.auth.caller import Caller
from llmserve.apiserver.auth.credential import Credential
from llmserve.apiserver.auth.oidc.claims import caller_of
from llmserve.apiserver.auth.oidc.fetch import fetch_json
from llmserve.apiserver.auth.oidc.issuer import Fetch, Issuer
from llmserve.config.schema.callers import OidcIssuer
from llmserve.core.clock import Clock, SystemClock
from llmserve.core.errors import NotAuthenticated
from llmserve.core.tasks import TaskOwner

_MOST_REMEMBERED = 10_000  # tokens


class OidcVerifier:
    """Life: start (once) -> caller_of ... -> aclose (idempotent). now: Unix time. When an issuer's keys
    change, none of the tokens that were checked before is trusted any more without another check."""

    def __init__(
        self,
        settings: Sequence[OidcIssuer],
        fetch: Fetch = fetch_json,
        clock: Clock | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._known: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()  # and until when
        clock = clock or SystemClock()
        self._issuers = {one.issuer: Issuer(one, fetch, clock, self._known.clear) for one in settings}

    async def start(self, owner: TaskOwner) -> None:
        """owner: of the tasks that fetch keys, now and later. An issuer that is away delays nothing."""
        for name, issuer in self._issuers.items():
            owner.spawn(f"keys-of-{name}", issuer.refresh())
            owner.spawn(f"follow-{name}", issuer.follow())

    async def caller_of(self, credential: Credential) -> Caller | None:
        """Returns who asks; None: this is no token. Errors: NotAuthenticated; Forbidden when no rule lets its
        claims in; Unavailable while the issuer's keys were never fetched."""
        if credential.text.count(".") != 2:
            return None
        digest, now = credential.digest, self._now()
        caller, until = self._known.get(digest, (None, 0.0))
        if caller is not None and now < until:
            return caller
        header, issuer = self._read(credential.text)
        claims = await issuer.claims_of(credential.text, header)
        caller = caller_of(claims, issuer.settings.rules)
        self._remember(digest, caller, float(claims["exp"]) + issuer.settings.clock_skew_seconds)
        return caller

    async def aclose(self) -> None:
        for issuer in self._issuers.values():
            await issuer.aclose()

    def _read(self, token: str) -> tuple[dict[str, Any], Issuer]:
        """Returns the header and the issuer that a token names, all of it unchecked. Errors:
        NotAuthenticated."""
        try:
            decoded = jwt.decode_complete(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise NotAuthenticated("the API key is not known, and no token either") from error
        named = decoded["payload"].get("iss")
        issuer = self._issuers.get(named) if isinstance(named, str) else None
        if issuer is None:
            raise NotAuthenticated("the token is of an issuer that is not known here")
        return decoded["header"], issuer

    def _remember(self, digest: bytes, caller: Caller, until: float) -> None:
        self._known[digest] = caller, until
        self._known.move_to_end(digest)
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
