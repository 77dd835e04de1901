"""One issuer: its keys, which it changes now and then, and its tokens."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import jwt

from llmserve.apiserver.auth.oidc.key_set import KeySet, VerifyingKey
from llmserve.config.schema.callers import OidcIssuer, is_safe_url
from llmserve.core.clock import Clock
from llmserve.core.errors import NotAuthenticated, Unavailable

_log = logging.getLogger(__name__)

_REFRESH_SECONDS = 300.0
_LEAST_SECONDS = 10.0  # between two questions, however many tokens name keys that are not known
_REQUIRED = ["exp", "iss", "aud"]

Fetch = Callable[[str], Awaitable[dict[str, Any]]]


class Issuer:
    """Keys that were fetched count for as long as the issuer does not answer. fetch: returns a document of
    JSON; Errors: Unavailable. on_change: called when the keys are others than before."""

    def __init__(
        self, settings: OidcIssuer, fetch: Fetch, clock: Clock, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.settings = settings
        self._fetch, self._clock, self._on_change = fetch, clock, on_change
        self._keys = KeySet({})
        self._asked_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._problem = ""

    def __repr__(self) -> str:
        return f"<Issuer {self.settings.issuer} keys={len(self._keys)}>"

    async def claims_of(self, token: str, header: dict[str, Any]) -> dict[str, Any]:
        """header: the token's, unchecked. Returns the claims of a token that is right in every way. Errors:
        NotAuthenticated; Unavailable while no key was ever fetched."""
        key = await self._key(header.get("kid"))
        algorithm = header.get("alg")
        jwk = key.jwk.get(algorithm) if isinstance(algorithm, str) else None
        if jwk is None:
            raise NotAuthenticated("the token's algorithm is not one of its key")
        try:
            return jwt.decode(
                token,
                jwk,
                algorithms=[jwk.algorithm_name],
                audience=self.settings.audience,
                issuer=self.settings.issuer,
                leeway=self.settings.clock_skew_seconds,
                options={"require": _REQUIRED},
            )
        except (jwt.PyJWTError, OverflowError) as error:
            raise NotAuthenticated(f"the token is refused: {_reason(error)}") from error

    async def _key(self, kid: object) -> VerifyingKey:
        """Asks the issuer for a key that is not known, but not often: anybody can make up such tokens."""
        if kid is not None and not isinstance(kid, str):
            raise NotAuthenticated("the token names its key in a way that is none")
        found = self._keys.find(kid)
        if found is None:
            await self.refresh(at_most_every=_LEAST_SECONDS)
            found = self._keys.find(kid)
        if found is not None:
            return found
        if not self._keys:
            text = f"the keys of {self.settings.issuer} cannot be fetched now"
            raise Unavailable(text, retry_after_seconds=_LEAST_SECONDS)
        raise NotAuthenticated("the token's key is not known")

    async def refresh(self, at_most_every: float = 0.0) -> None:
        """Fetches the keys, unless that was tried this many seconds ago. Those who ask meanwhile wait for the
        same answer. Who gives up waiting ends no fetch: strangers could keep new keys away so."""
        if self._fetching is None:
            if self._clock.now() - self._asked_at < at_most_every:
                return
            self._asked_at = self._clock.now()
            self._fetching = asyncio.create_task(self._fetch_keys(), name=f"keys-of-{self.settings.issuer}")
            self._fetching.add_done_callback(self._fetched)
        await asyncio.shield(self._fetching)

    def _fetched(self, task: "asyncio.Task[None]") -> None:
        self._fetching = None

    async def _fetch_keys(self) -> None:
        try:
            keys = KeySet(await self._fetch(await self._key_url()))
            if not keys:
                raise Unavailable(f"{self.settings.issuer} has no key that tokens can be checked by")
        except Unavailable as error:
            self._warn(error.message)
            return
        self._problem = ""
        if keys != self._keys:
            self._keys = keys
            _log.info("%s: %d keys", self.settings.issuer, len(keys))
            self._on_change()

    async def aclose(self) -> None:
        """Idempotent."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    async def _key_url(self) -> str:
        """Errors: Unavailable."""
        if self.settings.jwks_url is not None:
            return self.settings.jwks_url
        where = f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration"
        document = await self._fetch(where)
        if document.get("issuer") != self.settings.issuer:
            raise Unavailable(f"{where} is about another issuer")
        url = document.get("jwks_uri")
        if not isinstance(url, str) or not is_safe_url(url):
            raise Unavailable(f"{where} has no jwks_uri with https")
        return url

    async def follow(self) -> None:
        """Refreshes the keys for ever."""
        while True:
            await asyncio.sleep(_REFRESH_SECONDS if self._keys and not self._problem else _LEAST_SECONDS)
            await self.refresh()

    def _warn(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("the keys of %s are not refreshed: %s", self.settings.issuer, problem)
        self._problem = problem


_REASONS: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.ExpiredSignatureError, "it has expired"),
    (jwt.ImmatureSignatureError, "it is not valid yet"),
    (jwt.InvalidAudienceError, "it is for another audience"),
    (jwt.InvalidIssuerError, "it is of another issuer"),
    (jwt.MissingRequiredClaimError, "a claim is missing that it must have"),
    (jwt.InvalidSignatureError, "its signature is wrong"),
)


def _reason(error: Exception) -> str:
    """Returns what is wrong with a token in our words, which never have a part of it."""
    return next((text for kind, text in _REASONS if isinstance(error, kind)), "it is malformed")
