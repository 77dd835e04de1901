"""Watching, giving back, and what the side channel answers."""

import asyncio
import dataclasses
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.errors import DeadlineExceeded, InvalidRequest, TransferError
from llmserve.core.ids import LeaseId, RequestId
from llmserve.core.lease_table import LeaseAnswer
from llmserve.core.request import LeaseState
from llmserve.engines.kv_transfer import query_status, release_lease
from llmserve.engines.kv_transfer.protocol import (
    AskDigest,
    BeginRead,
    Done,
    LeaseIs,
    RequestRefusal,
    decode_answer,
    encode,
)

Make = Callable[..., Any]
Wait = Callable[[Callable[[], bool]], None]
REMOTE = [4, 5, 9]
LOCAL = [1, 2, 0]
LEASE_SECONDS = 0.12


def outlive_the_lease(owner: Any, wait_until: Wait, clock: VirtualClock) -> None:
    """Five renewals, between which nearly the time of the lease passes."""
    counters = owner.node.server._table.counters
    for _ in range(5):
        renewed = counters.renewed
        wait_until(lambda before=renewed: counters.renewed > before)  # type: ignore[misc]
        clock.advance(0.8 * LEASE_SECONDS)
    assert owner.node.server.take_ended() == frozenset()


def test_a_watch_renews_at_once_and_thrice_per_lease(
    make_side: Make, wait_until: Wait, clock: VirtualClock
) -> None:
    owner, reader = make_side(1, lease_seconds=LEASE_SECONDS, clock=clock), make_side(2)
    pull_params = owner.grant("p1", REMOTE)
    granted = time.monotonic()
    reader.node.client.watch(pull_params)
    outlive_the_lease(owner, wait_until, clock)
    assert time.monotonic() - granted > LEASE_SECONDS, "one at once, and four a third of the lease apart"
    reader.node.client.unwatch(pull_params)
    wait_until(lambda: not reader.node.client._watches)
    clock.advance(LEASE_SECONDS)
    wait_until(lambda: owner.node.server.take_ended() == {"p1"})
    assert owner.node.server._table.counters.expired == 1


def test_a_pull_takes_over_from_a_watch(
    make_side: Make, gated: Make, wait_until: Wait, clock: VirtualClock
) -> None:
    owner = make_side(1, gated(), lease_seconds=LEASE_SECONDS, clock=clock)
    reader = make_side(2, near := gated())
    pull_params = owner.grant("p1", REMOTE)
    reader.node.client.watch(pull_params)
    reader.pull(pull_params, LOCAL)
    assert near.started.wait(30)
    outlive_the_lease(owner, wait_until, clock)
    near.gate.set()
    assert reader.result().ok
    assert not reader.node.client._watches


def test_a_watch_ends_with_the_lease(make_side: Make, wait_until: Wait, clock: VirtualClock) -> None:
    owner, reader = make_side(1, clock=clock), make_side(2)
    pull_params = dataclasses.replace(owner.grant("p1", REMOTE), lease_seconds=0.03)
    reader.node.client.watch(pull_params)
    wait_until(lambda: owner.node.server._table.counters.renewed > 0)
    clock.advance(60)
    wait_until(lambda: not reader.node.client._watches)


def test_release_gives_back(make_side: Make, wait_until: Wait) -> None:
    owner, reader = make_side(1), make_side(2)
    pull_params = owner.grant("p1", REMOTE)
    reader.node.client.watch(pull_params)
    reader.node.client.release(pull_params)
    wait_until(lambda: owner.node.server.take_ended() == {"p1"})
    assert not reader.node.client._watches


async def test_a_front_releases_once(make_side: Make) -> None:
    owner = make_side(1)
    pull_params = owner.grant("p1", REMOTE)
    assert await release_lease(pull_params, 30.0)
    assert not await release_lease(pull_params, 30.0)
    assert owner.node.server.take_ended() == {"p1"}


async def test_a_front_waits_for_a_late_grant(
    make_side: Make, wait_until: Wait, answers_of: Callable[..., list[LeaseAnswer]]
) -> None:
    owner = make_side(1)
    answers = answers_of(owner, "release")
    pull_params = dataclasses.replace(owner.grant("p0", REMOTE), lease_id=LeaseId("later"))
    release = asyncio.create_task(release_lease(pull_params, 30.0))
    await asyncio.to_thread(wait_until, lambda: LeaseAnswer.UNKNOWN in answers)
    owner.node.server.grant(RequestId("p1"), REMOTE, LeaseId("later"))
    assert await release


async def test_a_front_gives_up_in_time(make_side: Make) -> None:
    owner = make_side(1)
    pull_params = dataclasses.replace(owner.grant("p0", REMOTE), lease_id=LeaseId("never"))
    with pytest.raises(DeadlineExceeded):
        await release_lease(pull_params, 0.05)


async def test_questions_to_nobody_are_transfer_errors(make_side: Make) -> None:
    owner = make_side(1)
    pull_params = owner.grant("p1", REMOTE)
    owner.node.close()
    with pytest.raises(TransferError):
        await release_lease(pull_params, 30.0)
    with pytest.raises(TransferError):
        await query_status(owner.node.endpoint, 30.0)


async def test_status_tells_of_leases(make_side: Make, clock: VirtualClock) -> None:
    owner = make_side(1, clock=clock)
    owner.grant("p1", REMOTE)
    owner.grant("p2", [1])
    status = await query_status(owner.node.endpoint, 30.0)
    assert status == owner.node.server.status()
    assert (status.worker_id, status.epoch, status.transports) == ("worker-1", 5, ("tcp",))
    assert (status.open_leases, status.leased_blocks, status.orphan_blocks) == (2, 4, 0)
    clock.advance(30)
    status = await query_status(owner.node.endpoint, 30.0)
    assert (status.open_leases, status.orphan_blocks, status.expired_leases) == (0, 4, 2)
    owner.node.server.take_ended()
    assert (await query_status(owner.node.endpoint, 30.0)).orphan_blocks == 0


def test_lease_changes_are_reported(make_side: Make) -> None:
    server = (owner := make_side(1)).node.server
    pull_params = owner.grant("p1", REMOTE)
    granted = server.take_changes()
    assert [(c.lease_id, c.state, c.blocks) for c in granted] == [
        (pull_params.lease_id, LeaseState.GRANTED, 3)
    ]
    assert server.withdraw(RequestId("p1"))
    assert [c.state for c in server.take_changes()] == [LeaseState.RELEASED]
    assert server.take_changes() == []


class _Unwritten:
    """The mark of a step that failed on its device."""

    def reached(self) -> bool:
        raise TransferError("the device has failed")


@pytest.mark.parametrize("end", ["withdraw", "failed writing"])
def test_the_end_of_a_lease_on_the_owner_s_side_is_announced(make_side: Make, end: str) -> None:
    server = (owner := make_side(1)).node.server
    lease_id = server.grant(RequestId("p1"), REMOTE, written=_Unwritten())
    ends: list[frozenset[RequestId]] = []
    owner.node.on_change(lambda: ends.append(server.take_ended()))
    if end == "withdraw":
        assert server.withdraw(RequestId("p1"))
    else:
        assert server._begin(1, BeginRead(lease_id, server._table.epoch)) == LeaseIs(LeaseAnswer.ENDED)
    assert ends == [{"p1"}]
    assert not server.withdraw(RequestId("p1"))
    assert len(ends) == 1, "nothing has ended"


def test_grants_are_checked(make_side: Make) -> None:
    owner = make_side(1)
    owner.grant("p1", REMOTE)
    with pytest.raises(InvalidRequest):
        owner.grant("p1", REMOTE)


def _exchange(endpoint: str, raw: bytes) -> bytes:
    host, port = endpoint.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def _framed(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack("!I", 0xFFFFFFFF),
        struct.pack("!I", 100) + b"short",
        _framed(b""),
        _framed(b"not MessagePack"),
        _framed(b"\xff\xfe"),
        _framed(b"\x90"),
        _framed(b"\x91" * 100_000),
        _framed(b"\x80"),
        _framed(msgspec.msgpack.encode({"type": "Format"})),
        _framed(msgspec.msgpack.encode({"type": ["release"]})),
        _framed(msgspec.msgpack.encode({"type": "Hello"})),
        _framed(msgspec.msgpack.encode({"type": "Hello", "geometry": {"block_bytes": {}}})),
        _framed(msgspec.msgpack.encode({"type": "release"})),
        _framed(msgspec.msgpack.encode({"type": "release", "lease_id": "x"})),
        _framed(msgspec.msgpack.encode({"type": "renew", "lease_id": "x", "epoch": "5"})),
        _framed(encode(AskDigest(b"1", b"", b""))),
        _framed(encode(Done())),  # an answer
    ],
)
async def test_garbage_costs_the_sender_its_connection_only(make_side: Make, raw: bytes) -> None:
    owner = make_side(1)
    answer = await asyncio.to_thread(_exchange, owner.node.endpoint, raw)
    assert answer == b"" or isinstance(decode_answer(answer[4:]), RequestRefusal)
    assert (await query_status(owner.node.endpoint, 30.0)).open_leases == 0


async def test_no_connection_or_descriptor_is_left(make_side: Make, wait_until: Wait) -> None:
    owner = make_side(1)
    await query_status(owner.node.endpoint, 30.0)

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    await asyncio.to_thread(wait_until, lambda: not owner.node.server._channels)
    before = open_files()
    for _ in range(20):
        await query_status(owner.node.endpoint, 30.0)
    reader = make_side(2)
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    assert (await asyncio.to_thread(reader.result)).ok
    reader.node.close()
    await asyncio.to_thread(wait_until, lambda: not owner.node.server._channels)
    await asyncio.to_thread(wait_until, lambda: open_files() <= before)


def test_close_is_final_and_idempotent(make_side: Make) -> None:
    side = make_side(1)
    side.node.close()
    side.node.server.close()
    side.node.client.close()
    side.node.client.watch(side.grant("p1", REMOTE))
    side.node.close()
