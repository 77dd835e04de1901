"""The response store that a manifest asks for."""

from collections.abc import Mapping

from llmserve.apiserver.responses.base import ResponseStore
from llmserve.apiserver.responses.memory import MemoryResponses
from llmserve.config.schema import Manifest
from llmserve.core.clock import Clock
from llmserve.core.errors import StartFailed

_CALL_SECONDS = 5.0


def build_store(manifest: Manifest, environ: Mapping[str, str], clock: Clock) -> ResponseStore | None:
    """None: nothing is kept. Errors: StartFailed, when the package or the password is missing."""
    settings, redis = manifest.api.response_store, manifest.state.redis
    if not settings.enabled:
        return None
    if redis is None or manifest.state.backend != "redis":
        return MemoryResponses(clock, settings.keep_seconds, settings.memory_mib * 2**20)
    variable = redis.password_env
    if variable is not None and not environ.get(variable):
        raise StartFailed(f"state.redis.password_env: the environment variable {variable} is not set")
    try:
        # Here: a cluster without Redis needs no package for it.
        from llmserve.apiserver.responses.redis import RedisResponses
    except ModuleNotFoundError as error:
        raise StartFailed(f"state.backend: redis: {error.msg}; pip install 'redis>=5'") from error
    return RedisResponses(
        redis.url,
        manifest.metadata.name,
        password=environ[variable] if variable is not None else None,
        keep_seconds=settings.keep_seconds,
        call_seconds=_CALL_SECONDS,
    )
