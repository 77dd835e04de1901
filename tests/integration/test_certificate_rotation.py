"""Certificates and authorities change while calls run: none of them fails."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from llmserve.engines.store.link import StoreLink
from llmserve.kvstore.role import KVManagerRole
from llmserve.rpc.callers import CallerIdentity, CallerRole
from llmserve.rpc.client import open_channel
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2
from llmserve.rpc.gen.llmserve.v1.kvmanager_pb2_grpc import KVManagerStub
from llmserve.rpc.wires.authority import Authority
from llmserve.rpc.wires.certificates import CertificateFolder
from tests.support.certificates import CLUSTER, make_certificates
from tests.support.far_away import far_away


class Place:
    """Certificates, and the clock by which processes look at them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, 0.0
        self.authority = make_certificates(folder)

    def credentials(self, role: CallerRole) -> Credentials:
        folder = CertificateFolder(self.folder / role, lambda: self.now)
        return Credentials(CallerIdentity(role, "me"), None, folder)

    def rotate(self) -> None:
        for role in CallerRole:
            self.authority.issue(self.folder, role, 1.0)
        self.now += 2.0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
async def address(place: Place) -> AsyncIterator[str]:
    role = KVManagerRole(listen="127.0.0.1:0", credentials=place.credentials(CallerRole.KVMANAGER))
    try:
        await role.start()
        yield f"127.0.0.1:{role.port}"
    finally:
        await role.aclose()


async def call_on(channel: grpc.aio.Channel, answered: asyncio.Semaphore, end: asyncio.Event) -> None:
    """Calls all the time. answered: is released after each. Errors: those of a call that failed."""
    stub = KVManagerStub(channel)  # type: ignore[no-untyped-call]
    while not end.is_set():
        await stub.GetKvStatus(kvmanager_pb2.GetKvStatusRequest(), timeout=30.0)
        answered.release()


async def test_no_call_fails_while_certificates_change(place: Place, address: str) -> None:
    operator, router = place.credentials(CallerRole.OPERATOR), place.credentials(CallerRole.ROUTER)
    end, answered = asyncio.Event(), asyncio.Semaphore(0)
    async with (
        open_channel(address, operator, CallerRole.KVMANAGER) as channel,
        open_channel(address, router, CallerRole.KVMANAGER) as watching,
    ):
        watch = KVManagerStub(watching).Watch(kvmanager_pb2.WatchRequest())  # type: ignore[no-untyped-call]
        await watching.channel_ready()
        loads = [asyncio.create_task(call_on(channel, answered, end)) for _ in range(4)]
        for _ in range(5):
            place.rotate()
            for _ in range(8):
                await asyncio.wait_for(answered.acquire(), 30.0)
        end.set()
        await asyncio.gather(*loads)
        assert not watch.done(), "a stream outlasts the certificate with which it began"


async def test_a_handshake_may_take_its_time(place: Place, address: str) -> None:
    """On a busy machine or over a long way, also that of the connection which follows a new certificate."""
    operator = place.credentials(CallerRole.OPERATOR)
    async with far_away(address, 0.15) as far, open_channel(far, operator, CallerRole.KVMANAGER) as channel:
        stub = KVManagerStub(channel)  # type: ignore[no-untyped-call]
        for _ in range(2):
            await stub.GetKvStatus(kvmanager_pb2.GetKvStatusRequest(), timeout=30.0)
            place.rotate()


async def test_the_authority_changes_too(place: Place, address: str) -> None:
    """Who has the new one already is accepted by whoever knows both."""
    operator = place.credentials(CallerRole.OPERATOR)
    async with open_channel(address, operator, CallerRole.KVMANAGER) as channel:
        stub = KVManagerStub(channel)  # type: ignore[no-untyped-call]
        await stub.GetKvStatus(kvmanager_pb2.GetKvStatusRequest(), timeout=30.0)
        place.authority = Authority.make(CLUSTER, 1.0)
        place.rotate()
        await stub.GetKvStatus(kvmanager_pb2.GetKvStatusRequest(), timeout=30.0)


async def test_a_closed_channel_ends_the_calls_on_all_its_connections(place: Place, address: str) -> None:
    router = place.credentials(CallerRole.ROUTER)
    async with open_channel(address, router, CallerRole.KVMANAGER) as channel:
        stub = KVManagerStub(channel)  # type: ignore[no-untyped-call]
        watches = []
        for _ in range(3):
            watches.append(stub.Watch(kvmanager_pb2.WatchRequest()))
            await channel.channel_ready()
            place.rotate()
    for watch in watches:
        assert await asyncio.wait_for(watch.code(), 30.0) is grpc.StatusCode.CANCELLED


async def test_an_engine_reaches_the_kv_manager_over_tls(
    place: Place, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMSERVE_CERTIFICATES", str(place.folder))
    link = StoreLink(address, "me", 1, [4096])
    try:
        answer = await asyncio.to_thread(link._attaching.result, 5.0)
        assert not answer.enabled, "this one has no store"
    finally:
        link.close()
