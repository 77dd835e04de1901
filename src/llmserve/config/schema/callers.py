"""Parts of section `security`: the keys and tokens of clients, and what needs none."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from llmserve.config.schema.section import AtStart, GiB, KeyUnit, ManifestSection, Requests, Seconds

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"

AccessScopes = Annotated[tuple[Literal["inference", "read", "admin"], ...], Field(strict=False, min_length=1)]


class CallerRights(ManifestSection):
    """What a client may do, and how much, that shows a certain key or token."""

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
    max_requests_in_flight: Requests | None = Field(default=None, gt=0)
    """At most this many requests of the key wait or run at the same time in the whole cluster; each choice
    (`n`) counts as one. One more is refused with 429. Without it, there is no limit."""
    max_requests_per_second: Annotated[float | None, KeyUnit("requests/second")] = Field(
        default=None, gt=0, allow_inf_nan=False
    )
    """At most this many requests of the key come in a second, on average, in the whole cluster. One more is
    refused with 429. Without it, there is no limit."""
    max_tokens_per_second: Annotated[float | None, KeyUnit("tokens/second")] = Field(
        default=None, gt=0, allow_inf_nan=False
    )
    """At most this many tokens are computed (prompt) or generated for the key in a second, on average, in the
    whole cluster. A request that comes earlier is refused with 429. Without it, there is no limit."""


class ApiKey(CallerRights):
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


def is_safe_url(url: str) -> bool:
    """Returns whether what is fetched from a URL can be trusted: over https, or from this machine."""
    try:
        parts = urlsplit(url)
        has_port = parts.port is None or parts.port > 0  # raises ValueError for one that is no number
    except ValueError:
        return False
    is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    plain = not (parts.username or parts.password or parts.fragment)
    return (
        has_port
        and plain
        and bool(parts.hostname)
        and (parts.scheme == "https" or (parts.scheme == "http" and is_local))
    )


def _safe_url(url: str) -> str:
    if not is_safe_url(url):
        shape = "an address is https://HOST/PATH; http:// is for this machine (localhost) alone"
        raise PydanticCustomError("url", "{text}", {"text": f"{url!r} cannot be used: {shape}"})
    return url


_SafeUrl = Annotated[str, AfterValidator(_safe_url)]


class OidcRule(CallerRights):
    """Who asks with a token that has these claims. Limits are those of each subject (`sub`) of the issuer,
    whichever of its tokens it shows. Tokens without a subject share them."""

    when: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    """The rule is for tokens whose claims have these values, all of them. A claim that is a list, or `scope`,
    has to contain the value. A claim inside another is named with a dot, such as `realm_access.roles`."""
    tenant: str | None = Field(default=None, min_length=1)
    """The tenant that asks."""
    tenant_claim: str | None = Field(default=None, min_length=1)
    """This claim of the token names the tenant that asks."""


class ConsoleClient(ManifestSection):
    """How people sign in to the console at this issuer. The console is a public client: it has no secret, and
    shows that a sign-in is its own by PKCE."""

    client_id: str = Field(min_length=1)
    """The id of the console at the issuer. The address of the page (`https://HOST/ui`) has to be registered
    there, for the return from sign-in and from sign-out."""
    scopes: Annotated[tuple[Annotated[str, Field(pattern=r"^[!#-\[\]-~]+$")], ...], Field(strict=False)] = ()
    """The console asks for these scopes beside `openid`. With `offline_access`, most issuers give a token by
    which the console renews the sign-in before it expires."""
    parameters: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    """What is sent along when somebody signs in and when tokens are asked for. Some issuers choose by
    `resource` or `audience` whom a token is for."""


class OidcIssuer(ManifestSection):
    """An issuer of tokens (OpenID Connect), which clients send as they send keys."""

    issuer: _SafeUrl
    """The issuer's address, as its tokens have it in `iss`."""
    audience: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)]
    """A token has to be for one of these audiences (`aud`)."""
    jwks_url: _SafeUrl | None = None
    """The issuer's keys are at this address. Without it, the issuer says where they are
    (`/.well-known/openid-configuration`). They are fetched every five minutes, and for a token with another
    key, but at most every ten seconds. While the issuer is away, the keys that are known count."""
    clock_skew_seconds: Seconds = Field(default=30.0, ge=0, le=300)
    """The clocks of the issuer and of this cluster may differ by this much."""
    rules: Annotated[tuple[OidcRule, ...], Field(strict=False, min_length=1)]
    """The first rule that a token meets says who asks. A token that meets none is refused with 403."""
    console: ConsoleClient | None = None
    """People may sign in to the console at `/ui` with this issuer. Without it, they need a key."""


class PublicPaths(ManifestSection):
    """Paths that need no key although there are keys. Probes (`/health`, `/live`, `/ping`, `/load`) never
    need one."""

    metrics: bool = True
    """`/metrics` of the HTTP API needs no key. Otherwise it needs the scope `read`. On Kubernetes, Prometheus
    then needs a key for the pods of apiservers."""
    docs: bool = False
    """`/docs`, `/redoc`, `/openapi.json` and `/version` need no key. `api.public_docs` says the same."""
