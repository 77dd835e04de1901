"""Section `security`: who may use the cluster, and what protects its wires."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from llmserve.config.schema.callers import ApiKey, KeyPlace, OidcIssuer, PublicPaths
from llmserve.config.schema.limits import SecurityLimits
from llmserve.config.schema.section import Live, ManifestSection

_HOST = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{1,5})?")
_DEFAULT_PORTS: Mapping[str, str] = MappingProxyType({"http": ":80", "https": ":443"})


def _origin(text: str) -> str:
    """Returns an origin as browsers write it: in lower case, and without the default port of its scheme."""
    lowered = text.lower()
    if text == "*":
        return text
    if not _ORIGIN.fullmatch(lowered):
        shape = "an origin is SCHEME://HOST or SCHEME://HOST:PORT, without a path, or '*' for all"
        raise PydanticCustomError("origin", "{text}", {"text": f"{text!r} is not an origin: {shape}"})
    return lowered.removesuffix(_DEFAULT_PORTS.get(lowered.partition("://")[0], ""))


class HttpTls(ManifestSection):
    """HTTPS for clients. The files are read again when they change, and only new connections notice it."""

    certificate: str = Field(min_length=1)
    """This file has the certificate of the HTTP API, and after it those of the authorities between it and one
    that clients know (PEM). A relative path is beside the manifest."""
    key: str = Field(min_length=1)
    """This file has the private key of the certificate (PEM, without a password)."""


class InternalTls(ManifestSection):
    """TLS between the processes of the cluster, in which both ends show a certificate. It says which role a
    process has. The files are read again when they change."""

    directory: str | None = Field(default=None, min_length=1)
    """This directory has a folder for each role (`apiserver`, `router`, `worker`, `kvmanager`, `operator`)
    with the files `tls.crt`, `tls.key` and `ca.crt`. `llmserve certs init` makes it. A relative path is
    beside the manifest. It must be set on one machine. On Kubernetes it is not used: pods have these files
    from Secrets."""
    plain_transports: bool = False
    """On Kubernetes, KV may also go over NIXL, UCX and gloo (`transfer.engine_order`), which encrypt nothing.
    Without this, it goes over tcp with TLS only, which is slower than RDMA."""


class Security(ManifestSection):
    """Who may use the cluster, and which tenants share KV."""

    api_keys: Annotated[tuple[ApiKey, ...], Live(("apiserver",))] = Field(default=(), strict=False)
    """Clients send these keys as `Authorization: Bearer KEY`. Without keys, everybody may use the API, as
    tenant `default`."""
    keys: KeyPlace | None = None
    oidc: tuple[OidcIssuer, ...] = Field(default=(), strict=False)
    """Clients may send tokens of these issuers instead of keys."""
    cors_origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], Live(("apiserver",))] = (
        Field(default=(), strict=False)
    )
    """Pages of these origins (`https://chat.example.com`) may use the API in a browser. `*` allows all
    origins. Without origins, browsers let only pages of the API's own origin read its answers."""
    public: PublicPaths = PublicPaths()
    kv_sharing: Literal["tenant", "cluster"] = "tenant"
    """Who reuses the KV of equal prompts. With `tenant`, only the tenant itself does. With `cluster`, all
    tenants do, and the speed of an answer reveals whether another tenant has asked the same."""
    limits: SecurityLimits = SecurityLimits()
    allowed_media_hosts: tuple[Annotated[str, Field(pattern=_HOST)], ...] = Field(default=(), strict=False)
    """Images, sounds, videos and files in requests may be URLs of these hosts; all other URLs are refused,
    and redirects are never followed. A host that leads to a private, loopback or link-local address is asked
    only if that address is in this list, too. Without hosts, clients send data inline. Models that take
    anything but text are not available yet, so that nothing is fetched in this release."""
    audit: bool = True
    """Each process writes a line of JSON for every administrative call (`audit-NAME.jsonl`), and for every
    call that it refuses because of who asks or how often (`refusals-NAME.jsonl`), in the log directory. Files
    are rotated at `observability.log_file_mib`, and four older ones are kept. On Kubernetes, the lines are
    part of the log."""
    tls: HttpTls | None = None
    mtls: InternalTls | None = None

    @property
    def asks_callers(self) -> bool:
        """Whether clients have to show who they are."""
        return bool(self.api_keys or self.oidc) or self.keys is not None
