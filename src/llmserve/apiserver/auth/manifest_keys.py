"""The keys that stand in the manifest, or in variables that it names."""

import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmserve.apiserver.auth.caller import Caller, caller_with
from llmserve.apiserver.auth.credential import Credential
from llmserve.config.conflict import refuse
from llmserve.config.refusals import unusable_api_keys
from llmserve.config.schema import ApiKey
from llmserve.core.errors import NotAuthenticated
from llmserve.core.ids import TenantId


class ManifestKeys:
    """Keys are kept as digests, and all of them are compared each time, so that timing reveals nothing about
    them."""

    def __init__(self, callers: Mapping[str, Caller] = {}) -> None:
        """callers: by key."""
        self._callers = [(Credential(key).digest, caller) for key, caller in callers.items()]

    def __bool__(self) -> bool:
        return bool(self._callers)

    def find(self, digest: bytes) -> Caller | None:
        """digest: that of a credential. Returns whose key it is; None: it is none of these."""
        found = None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        return None if found is None else replace(found, key_digest=digest.hex())

    def check(self, caller: Caller) -> None:
        """caller: one of before, with a key. Errors: NotAuthenticated when its key is not known any more, or
        is another tenant's."""
        key = (caller.key_digest, caller.tenant)
        if key not in {(digest.hex(), one.tenant) for digest, one in self._callers}:
            raise NotAuthenticated("the API key is not known any more")


def load_keys(keys: Sequence[ApiKey], environment: Mapping[str, str] = os.environ) -> ManifestKeys:
    """Errors: ManifestError when a variable with a key is not set, or an entry has the key of another."""
    refuse(unusable_api_keys(keys, environment))
    return ManifestKeys({_secret(key, environment): _caller(key, at) for at, key in enumerate(keys)})


def _caller(key: ApiKey, at: int) -> Caller:
    name = key.key_env or f"security.api_keys[{at}]"
    return caller_with(key, TenantId(key.tenant), name, admin=key.admin)


def _secret(key: ApiKey, environment: Mapping[str, str]) -> str:
    return environment[key.key_env or ""] if key.key is None else key.key
