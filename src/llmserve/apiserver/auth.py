"""API keys: who is asking."""

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping

from llmserve.config.service import ApiKey
from llmserve.core.errors import NotAuthenticated, StartFailed
from llmserve.core.ids import DEFAULT_TENANT, TenantId


class ApiKeys:
    """Without any key everybody is the default tenant. Keys are kept as digests and all of them
    are compared each time, so that timing tells nothing about them."""

    def __init__(self, tenants: Mapping[str, str]) -> None:
        """tenants: key to tenant."""
        self._tenants = [(_digest(key), TenantId(tenant)) for key, tenant in tenants.items()]

    def tenant_of(self, headers: Iterable[tuple[bytes, bytes]]) -> TenantId:
        """From `Authorization: Bearer KEY`, or Anthropic's `x-api-key: KEY`. Errors: NotAuthenticated."""
        if not self._tenants:
            return DEFAULT_TENANT
        key = _key_in(headers)
        if not key:
            raise NotAuthenticated("an API key is needed: send it as 'Authorization: Bearer KEY'")
        digest, found = _digest(key), None
        for known, tenant in self._tenants:
            if hmac.compare_digest(known, digest):
                found = tenant
        if found is None:
            raise NotAuthenticated("the API key is not known")
        return found


def load_keys(keys: Iterable[ApiKey], environment: Mapping[str, str] = os.environ) -> ApiKeys:
    """Errors: StartFailed when a variable that should hold a key is not set."""
    return ApiKeys({_secret(key, environment): key.tenant for key in keys})


def _secret(key: ApiKey, environment: Mapping[str, str]) -> str:
    if key.key is not None:
        return key.key
    secret = environment.get(key.key_env or "")
    if not secret:
        raise StartFailed(f"the environment variable {key.key_env} with the key of {key.tenant} is not set")
    return secret


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
