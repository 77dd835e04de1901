"""Builds the response store that a manifest asks for."""

from collections.abc import Mapping

from llmserve.apiserver.responses.store import MemoryResponses, ResponseStore
from llmserve.config.conflict import Conflict, refuse
from llmserve.config.refusals import unset_password
from llmserve.config.schema import Manifest
from llmserve.core.clock import Clock

_CALL_SECONDS = 5.0


def build_store(manifest: Manifest, environ: Mapping[str, str], clock: Clock) -> ResponseStore | None:
    """Returns the store that a manifest asks for; None when nothing is kept. Errors: ManifestError, when the
    package or the password is missing."""
    settings, redis = manifest.api.response_store, manifest.state.redis
    if not settings.enabled:
        return None
    if redis is None or manifest.state.backend != "redis":
        return MemoryResponses(clock, settings.keep_seconds, settings.memory_mib * 2**20)
    refuse(unset_password(manifest.state, environ))
    try:
        # Here: a cluster without Redis needs no package for it.
        from llmserve.apiserver.responses.redis import RedisResponses
    except ModuleNotFoundError as error:
        message = f"redis needs a package: {error.msg}; pip install 'redis>=5'"
        raise Conflict((("state", "backend"),), message).as_error() from error
    return RedisResponses(
        redis.url,
        manifest.metadata.name,
        password=environ[redis.password_env] if redis.password_env is not None else None,
        ca=redis.ca,
        keep_seconds=settings.keep_seconds,
        call_seconds=_CALL_SECONDS,
    )
