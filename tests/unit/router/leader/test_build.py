"""From the manifest's section to the shared state, and what is missing for it."""

import sys

import pytest

from llmserve.config.schema import State
from llmserve.core.errors import ManifestError
from llmserve.router.leader.build import build_state
from llmserve.router.leader.redis_state import RedisState

REDIS = State.model_validate({"backend": "redis", "redis": {"url": "redis://h:1", "password_env": "PW"}})


def test_memory_is_nothing_to_share() -> None:
    assert build_state(State(), "c", {}, 1.0) is None


async def test_redis() -> None:
    state = build_state(REDIS, "c", {"PW": "secret"}, 1.0)
    assert isinstance(state, RedisState)
    await state.aclose()


def test_a_password_that_is_not_there() -> None:
    with pytest.raises(ManifestError, match="the environment variable PW is not set"):
        build_state(REDIS, "c", {"PW": ""}, 1.0)


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("llmserve.router.leader.redis_state", "llmserve.rpc.redis_client"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ManifestError, match=r"state\.backend: redis needs a package: .*pip install"):
        build_state(REDIS, "c", {"PW": "secret"}, 1.0)
