"""The contract of a pair over real transports: the fallback, breakers, probes, and the end."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, PeerName, Region, Spans, Transfer, Transport
from llmserve.transfer.engine import flights
from llmserve.transfer.engine.choice import FIRST_PAUSE_SECONDS, TransferPolicy
from llmserve.transfer.engine.engine import SharedTransfers, TransferEngine
from llmserve.transfer.engine.lane import TokenBucket
from llmserve.transfer.engine.pair import Doubtful, Pair
from llmserve.transfer.faults import FaultPlan
from llmserve.transfer.faulty import FaultyTransport
from llmserve.transfer.shm import ShmTransport
from llmserve.transfer.tcp import TcpTransport

SIZE = 1 << 16
IN_ORDER = TransferPolicy(slow_factor=1e9)


async def nothing() -> None:
    """Nothing to compare, nobody to tell."""


def faulty(faults: str = "") -> FaultyTransport:
    return FaultyTransport(ShmTransport(), FaultPlan.parse(faults))


class Ends:
    """An owner of memory and a process that copies from and to it; `pair` is the latter's."""

    def __init__(self, mine: Sequence[Transport], policy: TransferPolicy, clock: VirtualClock) -> None:
        self.here = np.zeros(SIZE, np.uint8)
        self.there = np.random.default_rng(3).integers(0, 256, SIZE, np.uint8)
        self.owner = TransferEngine([ShmTransport(), TcpTransport()], [_region(self.there)])
        self.engine = TransferEngine(mine, [_region(self.here)], policy, clock)
        self.pair = self.run(self._made())

    async def _made(self) -> Pair:
        return Pair(self.engine, "owner", dict(self.owner.descriptions), self.owner.probe.info)

    def run(self, work: Any) -> Any:
        return self.engine.call(work)

    def rows(self) -> dict[str, Any]:
        return {row.transport: row for row in self.pair.choice.rows("owner", self.engine.clock.now())}

    def read(self, check: Any = nothing) -> list[str]:
        """Returns the failures on the way."""
        failures: list[str] = []

        async def attempt(name: str) -> None:
            await self.pair.read(name, batch(), check)

        self.run(self.pair.over_any(attempt, failures))
        return failures

    def write(self, *before: str) -> set[str]:
        """Returns the transports that are unclean afterwards. before: those that are unclean already."""
        unclean = set(before)

        async def attempt(name: str) -> None:
            await self.pair.write(name, batch(), nothing, unclean)

        self.run(self.pair.over_any(attempt, []))
        return unclean

    def close(self) -> None:
        self.engine.close()
        self.owner.close()


def _region(memory: Any) -> Region:
    return Region(memory.ctypes.data, memory.nbytes)


def batch() -> Batch:
    spans = Spans(np.zeros(4, np.int64), np.arange(4) * (SIZE // 4), np.full(4, SIZE // 4))
    return Batch(spans, spans)


Make = Callable[..., Ends]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def make(clock: VirtualClock) -> Iterator[Make]:
    before = set(threading.enumerate())
    made: list[Ends] = []

    def ends(*mine: Transport, policy: TransferPolicy = IN_ORDER) -> Ends:
        made.append(Ends(mine or [ShmTransport(), TcpTransport()], policy, clock))
        return made[-1]

    yield ends
    for one in made:
        one.close()
        one.close()
    assert set(threading.enumerate()) <= before


def test_a_read_brings_the_bytes_and_is_counted(make: Make) -> None:
    ends, started = make(), time.monotonic()
    failures = ends.read()
    assert (ends.here == ends.there).all()
    assert failures == []
    shm, tcp = ends.rows()["shm"], ends.rows()["tcp"]
    assert (shm.transfers, shm.bytes, shm.failures, shm.chosen) == (1, SIZE, 0, True)
    assert 0 < shm.seconds < time.monotonic() - started
    assert (tcp.transfers, tcp.chosen) == (0, False)


def test_a_write_brings_the_bytes_and_leaves_nothing_unclean(make: Make) -> None:
    ends = make()
    ends.here[:] = 7
    unclean = ends.write("tcp")
    assert (ends.there == 7).all()
    assert unclean == {"tcp"}, "another transport's"


@pytest.mark.parametrize("faults", ["fail_submit=1/1", "fail_poll=1/1", "drop_peer=1/1"])
def test_the_next_transport_takes_over_and_the_breaker_opens(make: Make, faults: str) -> None:
    ends = make(faulty(faults), TcpTransport())
    failures = ends.read()
    assert (ends.here == ends.there).all()
    assert [failure.partition(":")[0] for failure in failures] == ["shm"]
    assert (ends.rows()["shm"].breaker, ends.rows()["shm"].failures) == ("open", 1)
    assert ends.engine.counters.of("shm").failures == 1
    failures = ends.read()
    assert failures == [], "it is left out"


def test_a_write_that_failed_is_unclean(make: Make) -> None:
    ends = make(faulty("fail_poll=1/1"), TcpTransport())
    unclean = ends.write()
    assert unclean == {"shm"}


def test_a_stalled_read_ends_at_its_limit(make: Make) -> None:
    ends = make(
        faulty("stall=1/1"), TcpTransport(), policy=TransferPolicy(slow_factor=1e9, attempt_seconds=0.5)
    )
    failures = ends.read()
    assert failures == [f"shm: too slow: {SIZE} bytes not done within 0.5 s"]
    assert (ends.here == ends.there).all()


def test_bytes_that_do_not_compare_are_a_failure(make: Make) -> None:
    ends, checks = make(), []

    async def check() -> None:
        checks.append(ends.here.copy())
        if len(checks) == 1:
            raise TransferError("other bytes")

    failures = ends.read(check)
    assert failures == ["shm: other bytes"]
    assert [(seen == ends.there).all() for seen in checks] == [True, True]
    assert ends.rows()["shm"].transfers == 0
    assert ends.rows()["tcp"].transfers == 1


def test_all_reasons_are_told_when_nothing_works(make: Make) -> None:
    ends = make(faulty("fail_submit=1/1"), FaultyTransport(TcpTransport(), FaultPlan.parse("fail_poll=1/1")))
    with pytest.raises(TransferError, match=r"^shm: .*; tcp: ") as raised:
        ends.read()
    assert raised.value.message.count(": ") >= 2
    ends.run(_close(ends.pair))


async def _close(pair: Pair) -> None:
    pair.close("left")
    pair.close("again")


def test_without_a_common_transport_there_is_an_error(make: Make) -> None:
    ends = make()
    ends.pair = ends.run(_strange(ends))
    with pytest.raises(TransferError, match=r"in common with owner: shm, tcp here, nixl there$"):
        ends.read()


async def _strange(ends: Ends) -> Pair:
    return Pair(ends.engine, "owner", {"nixl": b""}, ends.owner.probe.info)


def test_a_doubtful_attempt_tries_the_next_and_opens_nothing(make: Make) -> None:
    ends, tried = make(), []

    async def attempt(name: str) -> None:
        tried.append(name)
        if len(tried) == 1:
            raise Doubtful("hm")

    failures: list[str] = []
    ends.run(ends.pair.over_any(attempt, failures))
    assert (tried, failures) == (["shm", "tcp"], ["shm: hm"])
    assert ends.rows()["shm"].breaker == "closed"
    assert ends.rows()["shm"].failures == 0


def test_a_peer_that_is_gone_ends_a_read_and_blames_no_transport(make: Make) -> None:
    ends = make(faulty("stall=1/1"), TcpTransport())

    async def leave() -> None:
        await asyncio.sleep(0.02)
        ends.pair.close("its worker has left")

    ends.engine.post(lambda: ends.engine.spawn("leave", leave()))
    with pytest.raises(TransferError, match=r"^shm: its worker has left$"):
        ends.read()
    assert ends.rows()["shm"].breaker == "closed"
    with pytest.raises(TransferError, match=r"^shm: its worker has left$"):
        ends.write()


def test_probes_measure_each_transport_once(make: Make) -> None:
    ends, told = make(), []

    async def tell() -> None:
        told.append(1)

    ends.run(ends.pair.probe_due(tell))
    ends.run(ends.pair.probe_due(tell))
    assert len(told) == 2
    assert all(row.bytes_per_second > 0 and row.small_seconds > 0 for row in ends.rows().values())
    assert all(row.transfers == 0 for row in ends.rows().values())


def test_a_probe_that_brings_other_bytes_opens_the_breaker(make: Make) -> None:
    ends = make(faulty("corrupt=1/1"), TcpTransport())
    ends.run(ends.pair.probe_due(nothing))
    assert ends.rows()["shm"].breaker == "open"
    assert ends.rows()["shm"].reason == "probe: a read of 65536 bytes brought other bytes than the peer's"
    assert ends.engine.counters.of("shm").failures == 0, "no transfer has failed"


def test_a_probe_closes_the_breaker_after_its_pause(make: Make, clock: VirtualClock) -> None:
    """After a drop it connects anew."""
    ends = make(faulty("drop_peer=1/1 at most 1"), TcpTransport())
    ends.read()
    ends.run(ends.pair.probe_due(nothing))
    assert ends.rows()["shm"].breaker == "open"
    clock.advance(FIRST_PAUSE_SECONDS)
    assert ends.rows()["shm"].breaker == "half-open"
    ends.run(ends.pair.probe_due(nothing))
    assert ends.rows()["shm"].breaker == "closed"
    failures = ends.read()
    assert failures == []
    assert ends.rows()["shm"].transfers == 1


@pytest.mark.parametrize("way", ["read", "write"])
def test_a_failure_ends_those_that_wait_for_their_turn(make: Make, way: str) -> None:
    ends = make(faulty("stall=1/1"))

    async def moved() -> None:
        if way == "read":
            await ends.pair.read("shm", batch(), nothing)
        else:
            await ends.pair.write("shm", batch(), nothing, set())

    async def fail() -> None:
        moves = []
        for _ in range(3):  # two are under way, and stall; the third waits
            moves.append(ends.engine.spawn("move", moved()))
            await _turn()
        ends.pair.failed("shm", "broken")
        await _turn()
        assert [move.done() for move in moves] == [False, False, True]
        with pytest.raises(TransferError, match=r"^out of use: broken$"):
            await moves[2]

    ends.run(fail())


async def _turn() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_failure_calls_its_listener(make: Make) -> None:
    ends, calls = make(faulty("fail_submit=1/1"), TcpTransport()), []
    ends.pair.on_failure = lambda: calls.append(1)
    ends.read()
    assert calls == [1]


class Stubborn(FaultyTransport):
    """Stalls, and does not let go of a transfer."""

    closed = False

    def cancel(self, transfer: Transfer) -> None:
        raise TransferError("not yet")

    def read(self, peer: PeerName, batch: Batch) -> Transfer:
        return super().read(peer, batch)

    def close(self) -> None:
        self.closed = True
        super().close()


def test_a_transport_that_never_lets_go_is_closed_for_good(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "CANCEL_SECONDS", 0.1)
    stubborn = Stubborn(ShmTransport(), FaultPlan.parse("stall=1/1"))
    ends = make(stubborn, TcpTransport(), policy=TransferPolicy(slow_factor=1e9, attempt_seconds=1.0))
    failures = ends.read()
    assert len(failures) == 1
    assert stubborn.closed
    assert list(ends.engine.transports) == ["tcp"]


def test_after_close_there_is_an_error(make: Make) -> None:
    ends = make()
    ends.close()
    with pytest.raises(TransferError, match="closed"):
        ends.run(nothing())
    with pytest.raises(TransferError, match="closed"):
        ends.engine.post(lambda: None)


def test_engines_share_budget_and_matrix_if_they_are_given_one() -> None:
    shared = SharedTransfers(1e9)
    engines = [TransferEngine([], [], shared=shared) for _ in range(2)]
    for engine in engines:
        engine.close()
    assert shared.bucket is not None
    assert all(one.bucket is shared.bucket and one.matrix is shared.matrix for one in engines)


def test_an_engine_has_the_budget_of_its_policy(make: Make) -> None:
    limited = TransferPolicy(bytes_per_second=1e9)
    one, two = make(policy=limited), make(policy=limited)
    assert one.engine.bucket is not None
    assert one.engine.bucket.burst_bytes == TokenBucket(1e9).burst_bytes
    assert one.engine.bucket is not two.engine.bucket
    assert make().engine.bucket is None


class Connections(FaultyTransport):
    """Notes what is connected and disconnected."""

    def __init__(self, plan: str = "") -> None:
        super().__init__(ShmTransport(), FaultPlan.parse(plan))
        self.calls: list[str] = []

    def connect(self, description: bytes) -> PeerName:
        self.calls.append("connect")
        return super().connect(description)

    def disconnect(self, peer: PeerName) -> None:
        self.calls.append("disconnect")
        super().disconnect(peer)


def test_a_pair_connects_once_and_disconnects_when_it_closes(make: Make) -> None:
    transport = Connections()
    ends = make(transport)
    assert [row.transport for row in ends.engine.matrix.rows()] == ["shm"]
    ends.read()
    ends.read()
    assert transport.calls == ["connect"]
    ends.run(_close(ends.pair))
    assert transport.calls == ["connect", "disconnect"]
    assert ends.engine.matrix.rows() == []


def test_a_transport_that_failed_is_disconnected(make: Make) -> None:
    transport = Connections("fail_poll=1/1 at most 1")
    ends = make(transport, TcpTransport())
    ends.read()
    assert transport.calls == ["connect", "disconnect"]


def test_a_probe_that_fails_disconnects_and_is_logged_once(
    make: Make, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    transport = Connections("fail_poll=1/1")
    ends = make(transport, TcpTransport())
    for number in (1, 2):
        ends.run(ends.pair.probe_due(nothing))
        clock.advance(FIRST_PAUSE_SECONDS)
        assert transport.calls == ["connect", "disconnect"] * number
        assert len([line for line in caplog.messages if line.startswith("kv from owner over shm: ")]) == 1


def test_a_probe_has_five_seconds(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, timeout = make(), asyncio.timeout
    limits: list[float | None] = []

    def noted(seconds: float | None) -> asyncio.Timeout:
        limits.append(seconds)
        return timeout(seconds)

    monkeypatch.setattr(asyncio, "timeout", noted)
    ends.run(ends.pair.probe_due(nothing))
    assert limits == [5.0, 5.0], "for each transport"


def test_a_failed_probe_of_a_peer_that_is_gone_blames_no_transport(make: Make) -> None:
    ends = make()

    async def leave() -> None:
        ends.pair.close("left")
        raise TransferError("no answer")

    ends.run(ends.pair.probe_due(leave))
    assert [(row.breaker, row.failures) for row in ends.rows().values()] == [("closed", 0)] * 2
