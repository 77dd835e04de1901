"""Builds the response store that a manifest asks for."""

from collections.abc import Mapping

from llmserve.apiserver.responses.redis import RedisResponses
from llmserve.apiserver.responses.store import MemoryResponses, ResponseStore
from llmserve.config.schema import Manifest
from llmserve.core.clock import Clock
from llmserve.rpc.redis_client import RedisAccess

_CALL_SECONDS = 5.0


def build_store(manifest: Manifest, environ: Mapping[str, str], clock: Clock) -> ResponseStore | None:
    """Returns the store that a manifest asks for; None when nothing is kept. Errors: ManifestError, when the
    package or the password is missing."""
    settings = manifest.api.response_store
    if not settings.enabled:
        return None
    if manifest.state.redis is None or manifest.state.backend != "redis":
        return MemoryResponses(clock, settings.keep_seconds, settings.memory_mib * 2**20)
    access = RedisAccess.of(manifest.state, environ, _CALL_SECONDS)
    return RedisResponses(access, manifest.metadata.name, settings.keep_seconds)
