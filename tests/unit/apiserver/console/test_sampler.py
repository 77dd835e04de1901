"""When the console looks at the cluster, and what it keeps of that. No real time passes."""

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace

import pytest

from llmserve.apiserver.console.events import StatusEvents, encoded, seen_by
from llmserve.apiserver.console.sampler import HISTORY_SECONDS, SLOW_SECONDS, Sampler, for_events
from llmserve.overview.snapshot import HEALTHY, Answers, snapshot
from llmserve.overview.views import Snapshot, as_json
from llmserve.rpc.gen.llmserve.v1 import common_pb2, kvmanager_pb2, router_pb2
from tests.unit.apiserver.console.looks import ADMIN, RED, table

pytestmark = pytest.mark.virtual_time


def _pair(transport: str, *, chosen: bool = True, transfers: int = 1) -> common_pb2.TransportPair:
    return common_pb2.TransportPair(
        peer="prefill-0", transport=transport, chosen=chosen, breaker="closed", transfers=transfers
    )


def _now(running: int = 3) -> Snapshot:
    pairs = [_pair("shm"), _pair("tcp", chosen=False), _pair("nixl", transfers=0)]
    info = common_pb2.WorkerInfo(worker_id="decode-0", role=common_pb2.WORKER_ROLE_DECODE, total_blocks=8)
    load = common_pb2.WorkerLoad(running_requests=running, used_blocks=2, transferred_bytes=9, pairs=pairs)
    tenants = [
        router_pb2.TenantStatus(
            tenant="red", weight=1, queued_requests=1, running_requests=2, served_tokens=7
        ),
        router_pb2.TenantStatus(tenant="blue", refused_requests=4),
    ]
    status = router_pb2.GetClusterStatusResponse(
        workers=[router_pb2.WorkerStatus(info=info, load=load, available=True)],
        tenants=tenants,
        queued_requests=1,
        running_requests=running,
    )
    kv = kvmanager_pb2.GetKvStatusResponse(
        tiers=[kvmanager_pb2.TierStatus(name="memory", kind="dram", used_bytes=5, hit_tokens=6)]
    )
    healths = dict.fromkeys(("apiserver-0", "decode-0"), HEALTHY)
    return snapshot(table("apiserver-0", "decode-0"), Answers(healths, status, kv), 100.0)


class Looks:
    """Counts looks."""

    def __init__(self) -> None:
        self.count = 0
        self.sampler = Sampler(self.look, self.time, self.time)

    def time(self) -> float:
        return asyncio.get_running_loop().time()

    async def look(self) -> Snapshot:
        self.count += 1
        return _now(self.count)

    async def during(self, seconds: float) -> int:
        before = self.count
        await asyncio.sleep(seconds)
        return self.count - before


async def test_it_looks_twice_a_second_for_all_viewers_together() -> None:
    looks = Looks()
    assert await looks.during(60) == 0
    async with aclosing(looks.sampler.watch()) as one, aclosing(looks.sampler.watch()) as other:
        first, second = await asyncio.gather(anext(one), anext(other))
        assert first is second
        assert 19 <= await looks.during(10) <= 21
    await looks.sampler.aclose()


async def test_without_viewers_it_looks_seldom_and_then_not_at_all() -> None:
    looks = Looks()
    async with aclosing(looks.sampler.watch()) as viewer:
        await anext(viewer)
    assert 10 <= await looks.during(60) <= 13
    await looks.during(HISTORY_SECONDS)
    assert await looks.during(60) == 0
    async with aclosing(looks.sampler.watch()) as viewer:
        await anext(viewer)
    await looks.sampler.aclose()


async def test_a_viewer_who_comes_back_waits_no_slow_turn() -> None:
    looks = Looks()
    async with aclosing(looks.sampler.watch()) as viewer:
        await anext(viewer)
    await asyncio.sleep(2)
    async with aclosing(looks.sampler.watch()) as viewer, asyncio.timeout(0.6):
        await anext(viewer)
    await looks.sampler.aclose()


async def test_a_look_that_fails_does_not_leave_viewers_waiting(caplog: pytest.LogCaptureFixture) -> None:
    looks, fails = Looks(), [True]

    async def look() -> Snapshot:
        if fails and fails.pop():
            raise KeyError("a defect")
        return await looks.look()

    sampler = Sampler(look, looks.time, looks.time)
    async with aclosing(sampler.watch()) as viewer, asyncio.timeout(2 * SLOW_SECONDS):
        await anext(viewer)
    assert "a defect" in caplog.text
    await sampler.aclose()


async def test_history_is_of_the_latest_minutes() -> None:
    looks = Looks()
    async with aclosing(looks.sampler.watch()) as viewer:
        await anext(viewer)
        await asyncio.sleep(2 * HISTORY_SECONDS)
    points = looks.sampler.history
    assert points[-1].at - points[0].at == pytest.approx(HISTORY_SECONDS, abs=1)
    assert [one.at for one in points] == sorted(one.at for one in points)
    last = points[-1]
    assert (last.queued_requests, last.running_requests) == (1, looks.count)
    assert last.workers == {"decode-0": (looks.count, 0, 0.25, 9)}
    assert last.tenants == {"red": (1, 2, 7, 0), "blue": (0, 0, 0, 4)}
    assert last.tiers == {"memory": (5, 6)}
    await looks.sampler.aclose()


async def test_closing_ends_what_viewers_watch() -> None:
    looks = Looks()
    seen = [one async for one in _closed_after(looks, 3)]
    assert len(seen) in (3, 4)
    assert [one async for one in looks.sampler.watch()] in ([], [seen[-1]])


async def _closed_after(looks: Looks, count: int):  # type: ignore[no-untyped-def]
    async for one in looks.sampler.watch():
        yield one
        if looks.count == count:
            await looks.sampler.aclose()


async def always() -> bool:
    return True


async def test_events_end_when_the_caller_may_see_them_no_more() -> None:
    looks, allowed = Looks(), [True]

    async def is_allowed() -> bool:
        return allowed[-1]

    events = StatusEvents(looks.sampler).of(ADMIN, is_allowed)
    assert (await anext(events)).startswith(b"event: history")
    assert (await anext(events)).startswith(b"event: status")
    allowed.append(False)
    assert [event async for event in events] == []
    await looks.sampler.aclose()


async def test_an_admin_sees_all_and_a_tenant_itself() -> None:
    looks = Looks()
    events = StatusEvents(looks.sampler)
    async with aclosing(events.of(ADMIN, always)) as admin, aclosing(events.of(RED, always)) as red:
        assert (await anext(admin)).startswith(b"event: history\ndata: {")
        assert (await anext(red)).startswith(b"event: history\ndata: {")
        whole, part = await asyncio.gather(anext(admin), anext(red))
    assert whole.startswith(b"event: status\ndata: {")
    assert whole.endswith(b"}\n\n")
    for text, seen in ((whole, True), (part, False)):
        assert (b"blue" in text) is seen
        assert (b"decode-0.log" in text) is seen
        assert b'"red"' in text
    async with aclosing(events.of(RED, always)) as red, aclosing(events.of(RED, always)) as other:
        assert b"blue" not in await anext(red)
        await anext(other)
        first, second = await asyncio.gather(anext(red), anext(other))
        assert first is second, "it is written once for all viewers of a tenant"
    async with aclosing(events.of(ADMIN, always)) as admin:
        assert b"blue" in await anext(admin)
    await looks.sampler.aclose()


def test_a_tenant_does_not_see_where_processes_run() -> None:
    whole = _now()
    decode = replace(whole.roles[1], health="restarting: see /run/llmserve/logs/decode-0.log")
    now = replace(
        whole,
        roles=(whole.roles[0], decode),
        index=replace(whole.index, followed=("10.0.0.7:7001",), away=("kvmanager-1.mine:7001",)),
        problems=(
            "the router at 10.0.0.7:7001 does not answer: failed to connect to ipv4:10.0.0.7:7001; 3/4",
            "the router does not follow the kvmanager at kvmanager-1.mine:7001: what it has is not known",
            "storage class disk: [Errno 28] No space left on device: '/var/lib/llmserve/kv'",
        ),
    )
    shown = encoded(seen_by(RED, now)).decode()
    for hidden in ("10.0.0.7", "kvmanager-1", "/run/", "/var/"):
        assert hidden in encoded(seen_by(ADMIN, now)).decode()
        assert hidden not in shown
    assert "; 3/4" in shown
    assert "the router does not follow the kvmanager at …: what it has" in shown


def test_only_ways_that_kv_went_are_sent_all_the_time() -> None:
    (worker,) = (role.worker for role in for_events(_now()).roles if role.worker)
    assert [pair.transport for pair in worker.pairs] == ["shm"]


def test_the_bytes_are_what_the_command_line_shows() -> None:
    now = replace(_now(), problems=("a",))
    assert json.loads(encoded(now)) == json.loads(json.dumps(as_json(now)))
