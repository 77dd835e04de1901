import asyncio
from collections.abc import Mapping, Sequence

import pytest

from llmserve.apiserver.auth.authenticator import Authenticator
from llmserve.apiserver.auth.caller import Caller
from llmserve.apiserver.auth.credential import Credential
from llmserve.apiserver.auth.manifest_keys import ManifestKeys
from llmserve.apiserver.auth.stores.live_keys import LiveKeys
from llmserve.apiserver.auth.stores.stored_key import NewKey, StoredKey, make_key
from llmserve.core.errors import LLMServeError, NotAuthenticated, Unavailable
from llmserve.core.ids import TenantId
from tests.unit.apiserver.auth.stores.conftest import NOW


class FakeStore:
    def __init__(self, *keys: StoredKey) -> None:
        self.keys, self.used_at = list(keys), dict[str, int]()
        self.error: LLMServeError | None = None

    async def read(self) -> Sequence[StoredKey]:
        self._fail()
        return list(self.keys)

    async def add(self, key: StoredKey) -> None:
        self.keys.append(key)

    async def remove(self, key_id: str) -> bool:
        return False

    async def note_uses(self, used_at: Mapping[str, int]) -> None:
        self._fail()
        self.used_at.update(used_at)

    async def aclose(self) -> None:
        return

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def store(made: NewKey) -> FakeStore:
    return FakeStore(made.stored)


@pytest.fixture
def keys(store: FakeStore) -> LiveKeys:
    return LiveKeys(store, now=lambda: NOW)


async def test_a_key_is_known_once_the_store_was_read(keys: LiveKeys, made: NewKey) -> None:
    with pytest.raises(Unavailable, match="cannot be read yet"):
        keys.find(Credential(made.text))
    await keys.refresh()
    assert keys.find(Credential(made.text)) == made.stored.caller
    assert keys.find(Credential("another-kind-of-key")) is None


async def test_the_id_alone_opens_nothing(keys: LiveKeys, made: NewKey) -> None:
    await keys.refresh()
    name = made.stored.id
    for text in (f"ls-{name}", f"ls-{name}-", f"ls-{name}-x", made.text + "x", made.text[:-1], "ls-0-x"):
        with pytest.raises(NotAuthenticated, match="the API key is not known"):
            keys.find(Credential(text))


async def test_a_key_ends_when_it_expires(store: FakeStore, keys: LiveKeys) -> None:
    made = make_key("red", ("read",), NOW - 100, expires_at=int(NOW))
    store.keys = [made.stored]
    await keys.refresh()
    with pytest.raises(NotAuthenticated, match="has expired"):
        keys.find(Credential(made.text))
    with pytest.raises(NotAuthenticated, match="not known any more"):
        keys.check(made.stored.caller)


async def test_changes_are_live_and_an_outage_locks_nobody_out(
    store: FakeStore, keys: LiveKeys, made: NewKey, caplog: pytest.LogCaptureFixture
) -> None:
    await keys.refresh()
    store.error, store.keys = Unavailable("Redis is away"), []
    for _ in range(3):
        await keys.refresh()
    assert keys.find(Credential(made.text)) is not None
    assert [record.getMessage() for record in caplog.records] == ["Redis is away"]
    store.error = None
    await keys.refresh()
    with pytest.raises(NotAuthenticated):
        keys.find(Credential(made.text))


async def test_last_uses_are_coarse_and_written_together(
    store: FakeStore, keys: LiveKeys, made: NewKey
) -> None:
    await keys.refresh()
    keys.find(Credential(made.text))
    assert store.used_at == {}
    await keys.note_uses()
    assert store.used_at == {made.stored.id: int(NOW // 60 * 60)}
    store.used_at.clear()
    await keys.note_uses()
    store.error = Unavailable("read-only")
    keys.find(Credential(made.text))
    await keys.aclose()
    assert store.used_at == {}


async def test_both_kinds_of_keys_at_once(store: FakeStore, keys: LiveKeys, made: NewKey) -> None:
    await keys.refresh()
    auth = Authenticator(ManifestKeys({"other-key": Caller(TenantId("red"))}), keys)
    assert not auth.is_open
    assert not Authenticator(stored=keys).is_open
    stored = await auth.caller_of([(b"x-api-key", made.text.encode())])
    other = await auth.caller_of([(b"x-api-key", b"other-key")])
    for caller in (stored, other):
        auth.check(caller)
    with pytest.raises(NotAuthenticated):
        await auth.caller_of([(b"x-api-key", b"neither")])
    store.keys = [make_key("blue", ("read",), NOW).stored]
    await keys.refresh()
    auth.check(other)
    with pytest.raises(NotAuthenticated, match="not known any more"):
        auth.check(stored)


async def test_a_key_of_another_tenant_now_is_not_the_one_of_before(
    store: FakeStore, keys: LiveKeys, made: NewKey
) -> None:
    store.keys = [made.stored.model_copy(update={"tenant": "blue"})]
    await keys.refresh()
    with pytest.raises(NotAuthenticated, match="not known any more"):
        keys.check(made.stored.caller)


@pytest.mark.virtual_time
async def test_the_store_is_read_each_second_and_uses_are_written_each_minute(
    store: FakeStore, made: NewKey
) -> None:
    loop = asyncio.get_running_loop()
    keys = LiveKeys(store, now=lambda: NOW + loop.time())
    await keys.refresh()
    following = asyncio.create_task(keys.follow())
    added = make_key("blue", ("read",), NOW).stored
    await store.add(added)
    keys.find(Credential(made.text))
    await asyncio.sleep(1.5)
    assert keys.check(added.caller)
    assert store.used_at == {}
    await asyncio.sleep(60)
    assert store.used_at.keys() == {made.stored.id}
    following.cancel()
