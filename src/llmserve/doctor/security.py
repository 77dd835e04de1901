"""Checks a manifest for settings that are weak: they work, and let in more than they need to."""

import stat
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from llmserve.config.schema import Manifest
from llmserve.doctor import Finding, ok, warning
from llmserve.k8s.render.configuration import engine_order
from llmserve.rpc.role import beside

_PLAIN = ("http", "redis")
_TRUST = "trust_remote_code"
_OPEN_TO_OTHERS = stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH


def weak_settings(manifest: Manifest, path: Path) -> Iterator[Finding]:
    """path: of the manifest."""
    yield _callers(manifest)
    yield _metrics(manifest)
    yield _key_files(manifest, path)
    yield _plain_wires(manifest)
    yield _remote_code(manifest)
    yield _between_hosts(manifest)


def _callers(manifest: Manifest) -> Finding:
    tenants = len({key.tenant for key in manifest.security.api_keys})
    if manifest.security.asks_callers:
        listed = f", {tenants} tenant{'s' if tenants != 1 else ''} in the manifest" if tenants else ""
        return ok("API keys", f"needed{listed}")
    if _is_open(manifest):
        advice = "Everybody who reaches the API may use it, as one tenant. Set security.keys."
        return warning("API keys", f"none, and the API is open at {_bound_to(manifest)}", advice)
    return ok("API keys", "none; the API listens on loopback only")


def _metrics(manifest: Manifest) -> Finding:
    if not _is_open(manifest):
        return ok("metrics", "on loopback only")
    if manifest.security.public.metrics:
        advice = (
            "They name models, tenants and adapters, and how much each is used. Set security.public.metrics "
            "to false, and observability.port to 0 or behind a firewall."
        )
        return warning("metrics", f"need no key at {_bound_to(manifest)}", advice)
    return ok("metrics", "need a key")


def _key_files(manifest: Manifest, path: Path) -> Finding:
    """Files of keys that other users of this machine can read, or change."""
    held = [path] if any(key.key for key in manifest.security.api_keys) else []
    if (place := manifest.security.keys) is not None and place.file is not None:
        held.append(beside(path, place.file))
    if (tls := manifest.security.tls) is not None:
        held.append(beside(path, tls.key))
    if (mtls := manifest.security.mtls) is not None and mtls.directory is not None:
        held += sorted(beside(path, mtls.directory).glob("*/*.key"))  # of roles, and of the authority
    shown = [str(file) for file in held if _is_open_to_others(file)]
    if shown:
        advice = f"They hold keys, or what lets them in. Run: chmod 600 {' '.join(shown)}"
        return warning(
            "key files", f"other users can read or change {', '.join(shown)}", advice, files=len(shown)
        )
    return ok("key files", "private" if held else "none", files=0)


def _is_open_to_others(file: Path) -> bool:
    try:
        return bool(file.stat().st_mode & _OPEN_TO_OTHERS)
    except OSError:
        return False


def _plain_wires(manifest: Manifest) -> Finding:
    plain = [f"{key} ({url})" for key, url in _servers(manifest).items() if _is_plain(url)]
    if plain:
        advice = "Whoever reads that network reads keys, prompts and KV. Use https:// or rediss://."
        return warning("other servers", f"not encrypted: {', '.join(plain)}", advice, servers=len(plain))
    return ok("other servers", "encrypted, or on this machine", servers=0)


def _servers(manifest: Manifest) -> Mapping[str, str]:
    """Returns the addresses of servers that are not ours, by key."""
    redis, tracing = manifest.state.redis, manifest.observability.tracing
    found = {
        "state.redis.url": redis.url if redis and manifest.state.backend == "redis" else None,
        "batches.endpoint": manifest.batches.endpoint,
        "lora.endpoint": manifest.lora.endpoint if manifest.lora else None,
        "observability.tracing.endpoint": tracing.endpoint,
    }
    found |= {f"storageClasses {one.name}": one.endpoint for one in manifest.storageClasses}
    return {key: url for key, url in found.items() if url is not None}


def _is_plain(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in _PLAIN and not _is_loopback(parts.hostname or "")


def _remote_code(manifest: Manifest) -> Finding:
    models = [one.served_name for one in manifest.served if manifest.alone(one).engine.options.get(_TRUST)]
    if models:
        advice = "Whoever may change the model's files runs code in every engine and apiserver of it."
        return warning("model code", f"trusted, of {', '.join(models)}", advice, models=len(models))
    return ok("model code", "not run", models=0)


def _between_hosts(manifest: Manifest) -> Finding:
    if (mtls := manifest.security.mtls) is not None:
        return _plain_transports(manifest) if mtls.plain_transports else ok("own wires", "mutual TLS")
    if manifest.deployment.mode == "local":
        return ok("own wires", "on this machine, with the cluster's secret")
    advice = (
        "Whoever reads the network between hosts reads prompts, answers and KV, and can repeat what is sent. "
        "Set security.mtls, and restrict who reaches the pods by a NetworkPolicy."
    )
    return warning("own wires", "with the cluster's secret, and not encrypted between hosts", advice)


def _plain_transports(manifest: Manifest) -> Finding:
    names = ", ".join(engine_order(manifest))
    if manifest.deployment.mode == "local" or not names:
        return ok("own wires", "mutual TLS")
    advice = "Whoever reads that network reads KV. Remove security.mtls.plain_transports."
    return warning("own wires", f"mutual TLS, but KV also goes over {names}, which encrypt nothing", advice)


def _is_open(manifest: Manifest) -> bool:
    """Whether others than this machine reach the API."""
    return manifest.deployment.mode != "local" or not _is_loopback(manifest.deployment.local.host)


def _bound_to(manifest: Manifest) -> str:
    return manifest.deployment.local.host if manifest.deployment.mode == "local" else "a Service"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
