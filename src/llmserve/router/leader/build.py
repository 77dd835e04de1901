"""The shared state that a manifest asks for."""

from collections.abc import Iterator, Mapping

from llmserve.config.conflict import Conflict
from llmserve.config.refusals import unset_password
from llmserve.config.schema import State
from llmserve.router.leader.redis_state import RedisState
from llmserve.router.leader.state import SharedState
from llmserve.rpc.redis_client import RedisAccess, missing_package


def build_state(
    section: State, cluster: str, environ: Mapping[str, str], call_seconds: float
) -> SharedState | None:
    """None: the router is alone. Errors: ManifestError when the package or the password is missing."""
    if section.redis is None or section.backend != "redis":
        return None
    return RedisState(RedisAccess.of(section, environ, call_seconds), cluster)


def state_refusals(section: State, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """Yields what build_state would refuse. Connects to nothing."""
    if section.backend == "redis":
        yield from unset_password(section, environ)
        yield from missing_package()
