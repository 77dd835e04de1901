"""Every place of keys keeps the same promises."""

import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from llmserve.apiserver.auth.stores.file import FileKeys
from llmserve.apiserver.auth.stores.redis import RedisKeys
from llmserve.apiserver.auth.stores.store import KeyStore
from llmserve.apiserver.auth.stores.stored_key import make_key
from llmserve.core.errors import StateUnavailable
from llmserve.rpc.redis_client import RedisAccess
from tests.support.valkey import Valkey, valkey

__all__ = ["valkey"]

NOW = 1_800_000_000.0
RED = make_key("red", ("inference",), NOW, models=("tiny",), requests_per_second=2.5).stored
BLUE = make_key("blue", ("admin",), NOW, expires_at=int(NOW) + 60).stored
MakeStore = Callable[[], KeyStore]


@pytest.fixture(params=["file", "redis"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    if request.param == "file":
        return lambda: FileKeys(tmp_path / "keys.json")
    server, cluster = request.getfixturevalue("valkey"), secrets.token_hex(4)
    return lambda: RedisKeys(RedisAccess(server.url, 5.0), cluster)


@pytest_asyncio.fixture
async def store(make_store: MakeStore) -> AsyncIterator[KeyStore]:
    one = make_store()
    yield one
    await one.aclose()
    await one.aclose()


async def test_what_one_adds_and_removes_another_sees(store: KeyStore, make_store: MakeStore) -> None:
    other = make_store()
    assert list(await other.read()) == []
    for key in (RED, BLUE):
        await store.add(key)
        assert key in await other.read()
    assert await other.remove(RED.id)
    assert list(await store.read()) == [BLUE]
    assert not await store.remove(RED.id)
    await store.remove(BLUE.id)
    assert list(await other.read()) == []
    await other.aclose()


async def test_the_last_use_is_the_latest_that_anybody_has_noted(
    store: KeyStore, make_store: MakeStore
) -> None:
    await store.add(RED)
    other = make_store()
    await store.note_uses({RED.id: 600, "0" * 12: 600})
    await other.note_uses({RED.id: 540})
    await other.aclose()
    fresh = make_store()
    (key,) = await fresh.read()
    assert key == RED.model_copy(update={"used_at": 600})
    await fresh.aclose()


async def test_a_server_without_memory_takes_no_key_away(valkey: Valkey, tmp_path: Path) -> None:
    server = Valkey(tmp_path)
    server.start()
    try:
        store = RedisKeys(RedisAccess(server.url, 5.0), "c")
        await store.add(RED)
        await store.read()
        server.kill()
        with pytest.raises(StateUnavailable):
            await store.read()
        server.start()
        with pytest.raises(StateUnavailable, match="has lost the keys"):
            await store.read()
        await store.add(BLUE)  # the operator begins anew
        assert list(await store.read()) == [BLUE]
        await store.aclose()
    finally:
        server.kill()
