"""The shared state that a manifest asks for."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from llmserve.config.conflict import Conflict, refuse
from llmserve.config.refusals import unset_password
from llmserve.config.schema import State
from llmserve.core.errors import ManifestError
from llmserve.router.leader.state import SharedState

if TYPE_CHECKING:
    from llmserve.router.leader.redis_state import RedisState


def build_state(
    section: State, cluster: str, environ: Mapping[str, str], call_seconds: float
) -> SharedState | None:
    """None: the router is alone. Errors: ManifestError when the package or the password is missing."""
    if section.redis is None or section.backend != "redis":
        return None
    refuse(unset_password(section, environ))
    variable = section.redis.password_env
    password = environ[variable] if variable is not None else None
    return _redis_state()(
        section.redis.url, cluster, password=password, call_seconds=call_seconds, ca=section.redis.ca
    )


def state_refusals(section: State, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """Yields what build_state would refuse. Connects to nothing."""
    if section.backend != "redis":
        return
    yield from unset_password(section, environ)
    try:
        _redis_state()
    except ManifestError as error:
        yield Conflict.of(error)


def _redis_state() -> "type[RedisState]":
    """Errors: ManifestError."""
    try:
        # Here: a cluster without Redis needs no package for it.
        from llmserve.router.leader.redis_state import RedisState
    except ModuleNotFoundError as error:
        message = f"redis needs a package: {error.msg}; pip install 'redis>=5'"
        raise Conflict((("state", "backend"),), message).as_error() from error
    return RedisState
