"""The contract of SharedState, on memory, on a file and on a real server."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.errors import ManifestError, StateUnavailable
from llmserve.router.leader.file_state import FileState
from llmserve.router.leader.redis_state import RedisState
from llmserve.router.leader.state import MemoryState, Saved, SharedState, StateKey, Term
from llmserve.rpc.redis_client import RedisAccess
from llmserve.rpc.wires.authority import Authority
from tests.support.certificates import make_host_certificate
from tests.support.tls_front import behind_tls
from tests.support.valkey import Valkey

A, B = "10.0.0.1:7000", "10.0.0.2:7000"
LONG = 60.0
SHORT = 0.15
_clusters = itertools.count()


@dataclass
class Kit:
    """What two routers see of one state, and how time passes there."""

    a: SharedState
    b: SharedState
    pass_time: Callable[[float], Awaitable[None]]


@pytest.fixture(params=["memory", "file", "redis"])
async def kit(request: pytest.FixtureRequest) -> AsyncIterator[Kit]:
    if request.param != "redis":
        clock = VirtualClock(100.0)

        async def advance(seconds: float) -> None:
            clock.advance(seconds)

        directory: Path = request.getfixturevalue("tmp_path")
        memory = FileState(clock, directory) if request.param == "file" else MemoryState(clock)
        yield Kit(memory, memory, advance)
        return
    server: Valkey = request.getfixturevalue("valkey")
    name = f"cluster-{next(_clusters)}"
    async with AsyncExitStack() as stack:
        both = [RedisState(RedisAccess(server.url, 5.0), name) for _ in range(2)]
        for one in both:
            stack.push_async_callback(one.aclose)
        yield Kit(both[0], both[1], asyncio.sleep)


async def begun(state: SharedState, leader: str = A, seconds: float = LONG) -> Term:
    term = await state.campaign(leader, seconds)
    assert isinstance(term, Term), term
    return term


async def test_one_leads(kit: Kit) -> None:
    term = await begun(kit.a)
    assert term.leader == A
    assert await kit.b.campaign(B, LONG) == A
    assert await kit.a.campaign(A, LONG) == A  # it has come back, and its older life leads still


async def test_epochs_are_times_and_grow(kit: Kit) -> None:
    first = await begun(kit.a)
    assert abs(first.epoch / 1000 - time.time()) < 60
    await kit.a.resign(first)
    second = await begun(kit.b, B)
    assert second.epoch > first.epoch


async def test_a_lease_ends_by_itself(kit: Kit) -> None:
    first = await begun(kit.a, seconds=SHORT)
    await kit.pass_time(SHORT * 1.2)
    second = await begun(kit.b, B)
    assert second.epoch > first.epoch
    assert not await kit.a.renew(first, LONG)
    assert await kit.b.renew(second, LONG)


async def test_a_renewed_lease_goes_on(kit: Kit) -> None:
    term = await begun(kit.a, seconds=SHORT)
    assert await kit.a.renew(term, LONG)
    await kit.pass_time(SHORT * 1.2)
    assert await kit.b.campaign(B, LONG) == A


async def test_a_lease_that_ended_unseen_is_renewed(kit: Kit) -> None:
    term = await begun(kit.a, seconds=SHORT)
    await kit.pass_time(SHORT * 1.2)
    assert await kit.a.renew(term, LONG)
    assert await kit.b.campaign(B, LONG) == A


async def test_who_resigned_is_followed_at_once(kit: Kit) -> None:
    first = await begun(kit.a)
    await kit.a.resign(first)
    second = await begun(kit.b, B)
    assert not await kit.a.renew(first, LONG)
    await kit.a.resign(first)  # nothing of the other's
    assert await kit.b.renew(second, LONG)


async def test_what_is_saved_is_loaded_with_its_age(kit: Kit) -> None:
    assert await kit.b.load() is None
    term = await begun(kit.a)
    assert await kit.a.save(term, "older")
    assert await kit.a.save(term, 'newer "with" \n all kinds of {text}')
    await kit.pass_time(0.05)
    saved = await kit.b.load()
    assert isinstance(saved, Saved)
    assert saved.text == 'newer "with" \n all kinds of {text}'
    assert 0.04 <= saved.age_seconds < 5.0


async def test_each_key_is_saved_apart(kit: Kit) -> None:
    term = await begun(kit.a)
    for key in set(StateKey) - {StateKey.SCHEDULER}:
        assert await kit.a.save(term, key, key)
    assert await kit.b.load() is None
    assert await kit.a.save(term, StateKey.SCHEDULER, StateKey.SCHEDULER)
    for key in StateKey:
        saved = await kit.b.load(key)
        assert saved is not None
        assert saved.text == key


async def test_only_who_leads_saves(kit: Kit) -> None:
    first = await begun(kit.a, seconds=SHORT)
    assert await kit.a.save(first, "first")
    await kit.pass_time(SHORT * 1.2)
    assert not await kit.a.save(first, "the lease has ended")
    second = await begun(kit.b, B)
    assert not await kit.a.save(first, "another leads")
    saved = await kit.b.load()
    assert saved is not None
    assert saved.text == "first"
    assert await kit.b.save(second, "second")


async def test_closing_twice(kit: Kit) -> None:
    await kit.a.aclose()
    await kit.a.aclose()


# -- the server goes, comes, hangs, and asks for a password


@pytest.fixture
def mortal(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Valkey]:
    server = Valkey(tmp_path, getattr(request, "param", ""))
    server.start()
    yield server
    server.kill()


async def test_a_lease_outlives_a_server_that_lost_it(mortal: Valkey) -> None:
    state = RedisState(RedisAccess(mortal.url, 5.0), "c")
    term = await begun(state)
    mortal.kill()
    with pytest.raises(StateUnavailable, match=f"127.0.0.1:{mortal.port}"):
        await state.renew(term, LONG)
    mortal.start()
    assert await state.renew(term, LONG)
    assert await state.campaign(B, LONG) == A
    await state.resign(term)
    assert (await begun(state, B)).epoch > term.epoch
    await state.aclose()


async def test_a_server_that_hangs_is_given_up(mortal: Valkey) -> None:
    state = RedisState(RedisAccess(mortal.url, 0.2), "c")
    term = await begun(state)
    mortal.pause()
    started = time.monotonic()
    with pytest.raises(StateUnavailable):
        await state.renew(term, LONG)
    assert time.monotonic() - started < 20
    mortal.resume()
    assert await state.renew(term, LONG)
    await state.aclose()


async def test_tls_with_an_authority_of_ones_own(mortal: Valkey, tmp_path: Path) -> None:
    authority, other = (Authority.make(name, 1.0) for name in ("ours", "theirs"))
    for name, one in (("ours", authority), ("theirs", other)):
        one.write(tmp_path / name)
    async with behind_tls(mortal.port, *make_host_certificate(authority, tmp_path)) as port:
        url = f"rediss://127.0.0.1:{port}/0"
        for name, is_trusted in (("ours", True), ("theirs", False)):
            ca = str(tmp_path / name / "ca" / "ca.crt")
            state = RedisState(RedisAccess(url, 5.0, ca=ca), "c")
            if is_trusted:
                assert await begun(state)
            else:
                with pytest.raises(StateUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                    await state.load()
            await state.aclose()


@pytest.mark.parametrize("mortal", ["correct"], indirect=True)
async def test_a_password(mortal: Valkey) -> None:
    state = RedisState(RedisAccess(mortal.url, 5.0, password="correct"), "c")
    assert await begun(state)
    await state.aclose()
    for wrong in ("wrong", None):
        state = RedisState(RedisAccess(mortal.url, 5.0, password=wrong), "c")
        with pytest.raises(StateUnavailable) as refused:
            await state.load()
        assert "wrong" not in refused.value.message.replace("WRONGPASS", "")
        await state.aclose()


def test_a_url_that_is_none() -> None:
    with pytest.raises(ManifestError, match=r"state\.redis\.url"):
        RedisState(RedisAccess("http://h", 1.0), "c")
