"""The shared state that a manifest asks for."""

from collections.abc import Mapping

from llmserve.config.schema import State
from llmserve.core.errors import StartFailed
from llmserve.router.state.base import SharedState


def build_state(
    section: State, cluster: str, environ: Mapping[str, str], call_seconds: float
) -> SharedState | None:
    """None: the router is alone. Errors: StartFailed, when the package or the password is missing."""
    if section.redis is None or section.backend != "redis":
        return None
    password = _password(section.redis.password_env, environ)
    try:
        # Here: a cluster without Redis needs no package for it.
        from llmserve.router.state.redis import RedisState
    except ModuleNotFoundError as error:
        raise StartFailed(f"state.backend: redis: {error.msg}; pip install 'redis>=5'") from error
    return RedisState(section.redis.url, cluster, password=password, call_seconds=call_seconds)


def _password(variable: str | None, environ: Mapping[str, str]) -> str | None:
    if variable is None:
        return None
    if not environ.get(variable):
        raise StartFailed(f"state.redis.password_env: the environment variable {variable} is not set")
    return environ[variable]
