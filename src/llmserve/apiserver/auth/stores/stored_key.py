"""A key of `llmserve keys` as it is kept: everything but the key itself.

ls-ID-SECRET    ID names the key in lists and logs; SECRET has 256 random bits, so that one round of
                SHA-256 is enough to keep it by
"""

import hashlib
import secrets
from collections.abc import Collection
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmserve.apiserver.auth.caller import AccessScope, Caller, only, scopes_of
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import BACKGROUND_SUFFIX, TenantId
from llmserve.scheduler.key_limits import KeyLimits

PREFIX = "ls-"
_ID_BYTES, _SECRET_BYTES = 6, 32
_Rate = Annotated[float | None, Field(gt=0, allow_inf_nan=False)]
_Time = int | None


class StoredKey(BaseModel):
    """sha256: of the whole key, in hexadecimal digits. models, adapters: names of those that it may use;
    None: all. Limits are those of the whole cluster; None: there is none. Times are Unix seconds. expires_at:
    it is not valid from then on. used_at: its last use, rounded down; None: it has not been used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    tenant: str = Field(min_length=1)
    scopes: tuple[AccessScope, ...] = Field(min_length=1)
    models: tuple[str, ...] | None = None
    adapters: tuple[str, ...] | None = None
    requests_per_second: _Rate = None
    tokens_per_second: _Rate = None
    max_requests_in_flight: Annotated[int | None, Field(ge=1)] = None
    created_at: int
    expires_at: _Time = None
    used_at: _Time = None

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.sha256)

    def has_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    @property
    def caller(self) -> Caller:
        """Who asks with the key."""
        limits = (self.requests_per_second, self.tokens_per_second, self.max_requests_in_flight)
        return Caller(
            TenantId(self.tenant),
            scopes_of(self.scopes),
            only(self.models),
            only(self.adapters),
            limits=KeyLimits(self.id, *limits),
            key_id=self.id,
            key_digest=self.sha256,
        )


class NewKey(NamedTuple):
    """text: the key itself, which is shown once and kept nowhere."""

    text: str
    stored: StoredKey


def make_key(tenant: str, scopes: Collection[str], now: float, **rights: object) -> NewKey:
    """rights: other fields of StoredKey. Errors: InvalidRequest for a value that a field cannot have."""
    if tenant.endswith(BACKGROUND_SUFFIX):
        raise InvalidRequest(f"a name that ends with '{BACKGROUND_SUFFIX}' is that of a tenant's batches")
    name = secrets.token_hex(_ID_BYTES)
    text = f"{PREFIX}{name}-{secrets.token_urlsafe(_SECRET_BYTES)}"
    fields = {"tenant": tenant, "scopes": tuple(scopes), "created_at": int(now), **rights}
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    try:
        return NewKey(text, StoredKey.model_validate({"id": name, "sha256": sha256, **fields}))
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InvalidRequest(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from error


def id_in(text: str) -> str:
    """Returns the id in a key of `llmserve keys`; empty: it is none."""
    return text.removeprefix(PREFIX).partition("-")[0] if text.startswith(PREFIX) else ""
