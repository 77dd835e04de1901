"""Parts of section `security`: the keys and tokens of clients, and what needs none."""

from typing import Annotated, Literal

from pydantic import Field

from llmserve.config.schema.section import AtStart, GiB, ManifestSection

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"

AccessScopes = Annotated[tuple[Literal["inference", "read", "admin"], ...], Field(strict=False, min_length=1)]


class ApiKey(ManifestSection):
    """A key and the tenant that it identifies. A tenant may have several keys."""

    tenant: str = Field(min_length=1)
    """The tenant that uses the key."""
    key: str | None = Field(default=None, min_length=1, repr=False)
    """The key itself. `key_env` is better, because it keeps secrets out of the file."""
    key_env: str | None = Field(default=None, pattern=_VARIABLE)
    """This environment variable of the apiserver holds the key."""
    admin: bool = False
    """The key may also use `/admin` paths and read the records of all requests
    (`/v1/requests/ID/explain`)."""
    scopes: AccessScopes = ("inference", "read")
    """What the key is good for. `inference`: requests that models answer. `read`: status, metrics, and
    records of the tenant's requests. `admin`: everything, as `admin: true`."""
    models: tuple[str, ...] | None = Field(default=None, strict=False)
    """The key may use only the models of these names. Others are unknown to it. Without it, the key may use
    all that its tenant may."""
    adapters: tuple[str, ...] | None = Field(default=None, strict=False)
    """The key may use only the adapters of these names, and the model itself. Others are unknown to it.
    Without it, the key may use all."""
    max_priority: int | None = Field(default=None, ge=0)
    """Requests of the key may be moved ahead by at most this many steps of `priority`, by `service_tier` too.
    0 leaves them where they are. Without it, there is no limit."""
    kv_quota_gb: Annotated[GiB | None, AtStart(("kvmanager",))] = Field(default=None, gt=0)
    """The tenant's KV blocks may take this much in each storage class. Without it, they may take all that
    there is. Set it at one of the tenant's keys."""


class KeyPlace(ManifestSection):
    """The place of keys that `llmserve keys` makes and revokes while the cluster runs. Apiservers notice a
    change within two seconds."""

    file: str | None = Field(default=None, min_length=1)
    """The keys are in this file, which `llmserve keys create` makes. It has no key itself, only what keys are
    checked by. A relative path is beside the manifest."""
    redis: bool = False
    """The keys are in the server of `state.redis`, which has to keep its data on disk."""


class PublicPaths(ManifestSection):
    """Paths that need no key although there are keys. Probes (`/health`, `/live`, `/ping`, `/load`) never
    need one."""

    metrics: bool = True
    """`/metrics` of the HTTP API needs no key. Otherwise it needs the scope `read`."""
    docs: bool = False
    """`/docs`, `/redoc`, `/openapi.json` and `/version` need no key. `api.public_docs` says the same."""
