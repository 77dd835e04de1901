"""API keys: who is asking."""

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmserve.config.conflict import refuse
from llmserve.config.refusals import unset_api_keys
from llmserve.config.schema.security import ApiKey
from llmserve.core.errors import NotAuthenticated
from llmserve.core.ids import DEFAULT_TENANT, TenantId


@dataclass(frozen=True, slots=True)
class Caller:
    """admin: may use `/admin`, and see every request's record. adapters: names of those that it may use;
    None: all. background: its requests are those of a batch. max_priority: how many steps its requests may
    be moved ahead; None: any number. key_digest: what ApiKeys knows the key by; None: there were no keys."""

    tenant: TenantId = DEFAULT_TENANT
    admin: bool = False
    adapters: frozenset[str] | None = None
    background: bool = False
    max_priority: int | None = None
    key_digest: str | None = field(default=None, compare=False, repr=False)


class ApiKeys:
    """Without any key everybody is the default tenant, and who asks from this machine is an admin. Keys
    are kept as digests and all of them are compared each time, so that timing reveals nothing about them."""

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        """callers: by key."""
        self._callers = [(_digest(key), caller) for key, caller in callers.items()]

    def caller_of(self, headers: Iterable[tuple[bytes, bytes]], *, is_local: bool = False) -> Caller:
        """Reads `Authorization: Bearer KEY`, or Anthropic's `x-api-key: KEY`. Errors: NotAuthenticated."""
        if not self._callers:
            return Caller(admin=is_local)
        key = _key_in(headers)
        if not key:
            raise NotAuthenticated(
                "an API key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
            )
        digest, found = _digest(key), None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise NotAuthenticated("the API key is not known")
        return replace(found, key_digest=digest.hex())

    def check(self, caller: Caller) -> None:
        """Errors: NotAuthenticated when the key of a caller of before is not known any more, or is another
        tenant's."""
        key = (caller.key_digest, caller.tenant)
        known = {(digest.hex(), one.tenant) for digest, one in self._callers}
        if caller.key_digest is not None and key not in known:
            raise NotAuthenticated("the API key is not known any more")


def load_keys(keys: Sequence[ApiKey], environment: Mapping[str, str] = os.environ) -> ApiKeys:
    """Errors: ManifestError when a variable that should hold a key is not set."""
    refuse(unset_api_keys(keys, environment))
    return ApiKeys({_secret(key, environment): _caller(key) for key in keys})


def _caller(key: ApiKey) -> Caller:
    adapters = None if key.adapters is None else frozenset(key.adapters)
    return Caller(TenantId(key.tenant), key.admin, adapters, max_priority=key.max_priority)


def _secret(key: ApiKey, environment: Mapping[str, str]) -> str:
    return environment[key.key_env or ""] if key.key is None else key.key


def _key_in(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-api-key":
            return value.decode("latin-1")
        if name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                return key.strip()
    return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
