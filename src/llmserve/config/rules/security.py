"""Refuses keys, issuers and names of tenants that are unclear. Pure."""

from collections.abc import Iterator

from llmserve.config.conflict import Conflict, Path, named_twice
from llmserve.config.schema import ApiKey, Manifest, Security
from llmserve.config.schema.section import path_text
from llmserve.core.ids import BACKGROUND_SUFFIX


def _api_keys(manifest: Manifest) -> Iterator[Conflict]:
    first: dict[tuple[str, str], int] = {}
    keys = manifest.security.api_keys
    for index, api_key in enumerate(keys):
        path: Path = ("security", "api_keys", index)
        secrets = _secrets(api_key)
        if len(secrets) != 1:
            how = "has both key and key_env; keep one" if secrets else "has no key; set key or key_env"
            yield Conflict((path,), how)
            continue
        same = first.setdefault(secrets[0], index)
        if same != index:
            other: Path = ("security", "api_keys", same)
            message = f"is the same key as {path_text(other)}, of tenant '{keys[same].tenant}'"
            yield Conflict((path, other), message)


def _secrets(api_key: ApiKey) -> list[tuple[str, str]]:
    """Returns the ways in which the key is given, each with its value."""
    return [(way, value) for way in ("key", "key_env") if (value := getattr(api_key, way)) is not None]


def _key_place(manifest: Manifest) -> Iterator[Conflict]:
    place = manifest.security.keys
    if place is None:
        return
    if (place.file is None) is not place.redis:
        how = "has both file and redis; keep one" if place.redis else "has no place; set file or redis: true"
        yield Conflict.at(how, "security.keys")
    elif place.redis and manifest.state.redis is None:
        yield Conflict.at("needs state.redis.url", "security.keys.redis", "state")


def _oidc(manifest: Manifest) -> Iterator[Conflict]:
    issuers = manifest.security.oidc
    yield from named_twice(("security", "oidc"), [one.issuer for one in issuers], "issuer '{}'")
    for index, issuer in enumerate(issuers):
        for at, rule in enumerate(issuer.rules):
            path: Path = ("security", "oidc", index, "rules", at)
            if (rule.tenant is None) is (rule.tenant_claim is None):
                how = "has no tenant; set" if rule.tenant is None else "has both; keep one of"
                yield Conflict((path,), f"{how} tenant or tenant_claim")


def _tenants(manifest: Manifest) -> Iterator[Conflict]:
    for holder, tenant in _named_tenants(manifest.security):
        if tenant.endswith(BACKGROUND_SUFFIX):
            message = f"a name that ends with '{BACKGROUND_SUFFIX}' is that of a tenant's batches"
            yield Conflict(((*holder, "tenant"),), message)
    for path, items in (
        (("budgets", "tenants"), manifest.budgets.tenants),
        (("scheduling", "weights"), manifest.scheduling.weights),
    ):
        yield from named_twice(path, [one.tenant for one in items], "tenant '{}'")


def _named_tenants(security: Security) -> Iterator[tuple[Path, str]]:
    """Yields what names a tenant, and its name."""
    for index, api_key in enumerate(security.api_keys):
        yield ("security", "api_keys", index), api_key.tenant
    for index, issuer in enumerate(security.oidc):
        for at, rule in enumerate(issuer.rules):
            yield ("security", "oidc", index, "rules", at), rule.tenant or ""


RULES = (_api_keys, _key_place, _oidc, _tenants)
