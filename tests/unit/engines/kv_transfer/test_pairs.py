"""The matrix of a process: probes at the join, the choice, breakers that open and close, what is refused."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from llmserve.core.errors import TransferError
from llmserve.core.ids import WorkerId
from llmserve.core.kv_params import PeerAddress
from llmserve.core.request import PairStatus
from llmserve.engines.kv_transfer import query_status
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.engine.engine import SharedTransfers
from llmserve.transfer.faults import FaultPlan
from llmserve.transfer.faulty import FaultyTransport
from llmserve.transfer.tcp import TcpTransport

Make = Callable[..., Any]
Wait = Callable[[Callable[[], bool]], None]
REMOTE, LOCAL = [4, 5, 9], [1, 2, 0]
IN_ORDER = TransferPolicy(slow_factor=1e9)  # a busy machine must not change the order


def _meet(reader: Any, *owners: Any, epoch: int = 5) -> None:
    reader.node.client.set_peers(
        [PeerAddress(WorkerId("owner"), epoch, owner.node.endpoint) for owner in owners]
    )


def _faulty(plan: str = "") -> FaultyTransport:
    """Named as what it wraps: another name tells it from the tcp beside it."""
    transport = FaultyTransport(TcpTransport(), FaultPlan.parse(plan))
    transport.name = "first"
    return transport


def _row(side: Any, transport: str) -> Any:
    return next((row for row in side.rows if row.transport == transport), None)


def test_peers_are_measured_when_they_are_met(make_side: Make) -> None:
    owner, reader = (
        make_side(1, _faulty(), TcpTransport()),
        make_side(2, _faulty(), TcpTransport(), policy=IN_ORDER),
    )
    _meet(reader, owner)
    reader.probed(owner)
    first, tcp = reader.rows
    assert (first.peer, first.transport, first.chosen, first.breaker) == ("worker-1", "first", True, "closed")
    assert (tcp.transport, tcp.chosen) == ("tcp", False)
    assert min(first.bytes_per_second, tcp.small_seconds) > 0
    assert owner.rows == [], "who is read from measures nothing"


def test_a_transport_that_cannot_register_is_said_and_the_others_serve(
    make_side: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _faulty()

    def register(_: object) -> None:
        raise TransferError("UCX takes it for host memory")

    monkeypatch.setattr(first, "register", register)
    owner, reader = make_side(1, TcpTransport()), make_side(2, first, TcpTransport())
    assert reader.node.transports == ("tcp",)
    assert _row(reader, "first").reason == "UCX takes it for host memory"
    assert _row(reader, "first").breaker == "unavailable"
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    assert reader.result().transport == "tcp"


def test_a_probe_that_brings_other_bytes_opens_the_breaker(make_side: Make, wait_until: Wait) -> None:
    owner = make_side(1, _faulty(), TcpTransport())
    reader = make_side(2, _faulty("corrupt=1/1"), TcpTransport())
    _meet(reader, owner)
    wait_until(lambda: bool(reader.rows) and _row(reader, "first").breaker == "open")
    wait_until(lambda: bool(_row(reader, "tcp").bytes_per_second))
    assert "other bytes" in _row(reader, "first").reason
    assert _row(reader, "tcp").chosen


def test_a_transport_that_recovers_is_used_again(make_side: Make, wait_until: Wait) -> None:
    owner, reader = (
        make_side(1, _faulty(), TcpTransport()),
        make_side(2, near := _faulty(), TcpTransport(), policy=IN_ORDER),
    )
    _meet(reader, owner)
    reader.probed(owner)
    near.faults.replace(FaultPlan.parse("fail_poll=1/1 at most 1"))
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    result = reader.result()
    assert (result.ok, result.transport) == (True, "tcp")
    assert result.fallbacks == ("first: first: injected fault: fail_poll",)
    assert _row(reader, "first").breaker == "open"
    assert _row(reader, "first").failures == 1
    wait_until(lambda: _row(reader, "first").breaker == "closed")
    reader.pull(owner.grant("p2", REMOTE), LOCAL, "d2")
    assert reader.result().transport == "first"


@pytest.mark.parametrize(("verify", "noticed"), [("always", True), ("off", False)])
def test_wrong_bytes_are_noticed_and_fetched_again(make_side: Make, verify: Any, noticed: bool) -> None:
    policy = dataclasses.replace(IN_ORDER, verify=verify)
    owner = make_side(1, _faulty(), TcpTransport())
    reader = make_side(2, near := _faulty(), TcpTransport(), policy=policy)
    _meet(reader, owner)
    reader.probed(owner)
    near.faults.replace(FaultPlan.parse("corrupt=1/1 at most 1"))
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    result = reader.result()
    assert result.ok
    assert (result.transport == "tcp") is noticed
    assert ("digests differ" in "".join(result.fallbacks)) is noticed
    assert reader.kv.holds(LOCAL, owner.kv, REMOTE) is noticed


def test_a_stalled_transfer_goes_on_elsewhere(make_side: Make) -> None:
    policy = dataclasses.replace(IN_ORDER, attempt_seconds=0.5)  # enough for tcp on a busy machine
    owner = make_side(1, _faulty(), TcpTransport())
    reader = make_side(2, near := _faulty(), TcpTransport(), policy=policy)
    _meet(reader, owner)
    reader.probed(owner)
    near.faults.replace(FaultPlan.parse("stall=1/1"))
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    result = reader.result()
    assert (result.ok, result.transport) == (True, "tcp")
    assert "too slow" in result.fallbacks[0]
    assert reader.kv.holds(LOCAL, owner.kv, REMOTE)


def test_who_does_not_fit_is_refused_with_the_reason(make_side: Make, wait_until: Wait) -> None:
    owner, reader = make_side(1), make_side(2)
    geometry = dataclasses.replace(reader.kv.layout.geometry, kv_dtype="fp8")
    other = make_side(3, layout=dataclasses.replace(reader.kv.layout, geometry=geometry))
    _meet(other, owner)
    wait_until(lambda: bool(other.rows))
    (row,) = other.rows
    assert (row.peer, row.transport, row.breaker) == ("owner", "", "refused")
    assert "kv_dtype differs" in row.reason


def test_who_is_not_there_is_refused_until_it_is_forgotten(make_side: Make, wait_until: Wait) -> None:
    reader = make_side(2)
    reader.node.client.set_peers([PeerAddress(WorkerId("gone"), 1, "127.0.0.1:1")])
    wait_until(lambda: bool(reader.rows))
    assert "cannot connect" in reader.rows[0].reason
    reader.node.client.set_peers([])
    wait_until(lambda: reader.rows == [])


def test_what_was_learnt_outlives_the_connection(make_side: Make, wait_until: Wait) -> None:
    owner, reader = make_side(1), make_side(2)
    _meet(reader, owner)
    reader.probed(owner)
    measured = reader.rows[0].bytes_per_second
    reader.node._engine.call(_hang_up(owner.node.server))
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    assert reader.result().ok
    assert reader.rows[0].bytes_per_second == measured
    assert reader.rows[0].transfers == 1


async def _hang_up(server: Any) -> None:
    loop = server._engine._loop
    loop.call_soon_threadsafe(lambda: [channel.close() for channel in server._channels.values()])


def test_the_limit_slows_pulls_down(make_side: Make) -> None:
    size = 3 * (4096 + 8192 + 100)
    owner = make_side(1)
    reader = make_side(2, policy=TransferPolicy(bytes_per_second=4.0 * size))
    for number in range(4):
        reader.pull(owner.grant(f"p{number}", REMOTE), LOCAL, f"d{number}")
    slowest = max(result.seconds for result in reader.results(4))
    assert 0.5 < slowest < 3


def test_pairs_of_other_engines_of_the_process_are_in_its_status(make_side: Make, wait_until: Wait) -> None:
    """Those of a KV store on another host."""
    store = PairStatus("kvmanager-0", "tcp", True, "closed", "", 0.001, 1e9, 3, 300, 0.1, 0)
    shared = SharedTransfers()
    matrix = shared.matrix
    owner, reader = make_side(1), make_side(2, shared=shared)
    matrix.add(source := lambda: [store])
    _meet(reader, owner)
    wait_until(lambda: len(reader.rows) == 2)
    status = asyncio.run(query_status(reader.node.endpoint, 5.0))
    assert [row.peer for row in status.pairs] == ["kvmanager-0", "worker-1"]
    assert store in status.pairs
    matrix.remove(source)
    matrix.remove(source)
    assert [row.peer for row in reader.rows] == ["worker-1"]
