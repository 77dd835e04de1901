"""From the manifest's section to the shared state, and what is missing for it."""

import sys

import pytest

from llmserve.config.schema import State
from llmserve.core.errors import ManifestError
from llmserve.router.leader.build import build_state, state_refusals
from llmserve.router.leader.redis_state import RedisState

REDIS = State.model_validate({"backend": "redis", "redis": {"url": "redis://h:1", "password_env": "PW"}})


IDLE_REDIS = State.model_validate({"backend": "memory", "redis": {"url": "redis://h:1"}})
OPEN_REDIS = State.model_validate({"backend": "redis", "redis": {"url": "redis://h:1"}})


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)


@pytest.mark.parametrize("section", [State(), IDLE_REDIS])
def test_memory_is_nothing_to_share(section: State) -> None:
    assert build_state(section, "c", {}, 1.0) is None


async def test_redis() -> None:
    state = build_state(REDIS, "c", {"PW": "secret"}, 1.0)
    assert isinstance(state, RedisState)
    await state.aclose()


def test_a_password_that_is_not_there() -> None:
    with pytest.raises(ManifestError, match="the environment variable PW is not set"):
        build_state(REDIS, "c", {"PW": ""}, 1.0)


async def test_redis_without_a_password() -> None:
    state = build_state(OPEN_REDIS, "c", {}, 1.0)
    assert isinstance(state, RedisState)
    await state.aclose()


@pytest.mark.usefixtures("no_package")
def test_a_package_that_is_not_there() -> None:
    with pytest.raises(ManifestError, match=r"state\.redis: redis needs a package: .*pip install"):
        build_state(REDIS, "c", {"PW": "secret"}, 1.0)


def test_what_cannot_be_built_is_known_before_the_start() -> None:
    assert list(state_refusals(REDIS, {"PW": "secret"})) == []
    (conflict,) = state_refusals(REDIS, {})
    assert conflict.message == "the environment variable PW is not set"


@pytest.mark.usefixtures("no_package")
def test_a_missing_package_is_known_before_the_start() -> None:
    assert list(state_refusals(IDLE_REDIS, {})) == []
    (conflict,) = state_refusals(REDIS, {"PW": "secret"})
    assert conflict.paths == (("state", "redis"),)
    assert conflict.message.startswith("redis needs a package")
