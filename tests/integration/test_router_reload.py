"""A reload at a real router: what it and its workers obey afterwards, and what an apiserver is asked."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest

from llmserve.config.load import parse_manifest
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.request import EngineLoad
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2, router_pb2_grpc
from llmserve.rpc.leader import RouterAddresses, explain_request, reload_cluster
from llmserve.workers.membership import RouterMembership

WAIT_SECONDS = 30.0
BASE = "kind: LLMServe\nmodels: {primary: {source: 'hub:a/b'}}\n"


@pytest.fixture
def root_level() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


@pytest.fixture
async def router(root_level: None) -> AsyncIterator[RouterRole]:
    manifest = parse_manifest(BASE, "m.yaml")
    settings = RouterSettings.of(manifest)
    role = RouterRole(settings, listen="127.0.0.1:0", manifest=manifest)
    await role.start()
    yield role
    role.check_integrity()
    await role.aclose()


@pytest.fixture
async def channel(router: RouterRole) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(f"127.0.0.1:{router.port}") as opened:
        yield opened


async def _reload(router: RouterRole, more: str) -> list[str]:
    return (
        await reload_cluster(RouterAddresses((f"127.0.0.1:{router.port}",)), BASE + more, "m.yaml")
    ).lines()


async def _until(holds: Any) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not holds():  # noqa: ASYNC110 - a log level has no event
            await asyncio.sleep(0.01)


async def test_a_worker_obeys_from_its_next_heartbeat_on(
    router: RouterRole, channel: grpc.aio.Channel
) -> None:
    async def load() -> EngineLoad:
        return EngineLoad()

    async def set_peers(peers: object) -> None: ...

    info = common_pb2.WorkerInfo(
        worker_id="decode-0",
        role=common_pb2.WORKER_ROLE_DECODE,
        address="127.0.0.1:1",
        epoch=1,
        model="m",
        kv_shape=common_pb2.KvShape(layout="x", block_size_tokens=16),
        max_concurrency=1,
    )
    drainer = SimpleNamespace(draining=False)
    adapters = SimpleNamespace(reports=tuple)
    worker = SimpleNamespace(info=info, load=load, wait_for_change=asyncio.sleep)
    engine = SimpleNamespace(set_peers=set_peers)
    membership = RouterMembership(worker, {"router": channel}, engine, drainer, adapters)  # type: ignore[arg-type]
    running = asyncio.create_task(membership.run())
    try:
        await asyncio.wait_for(membership.registered.wait(), WAIT_SECONDS)
        logging.getLogger().setLevel(logging.INFO)
        await _reload(router, "scheduling: {worker_heartbeat_seconds: 0.25}\n")
        await _until(lambda: membership._interval == 0.25)
        assert logging.getLogger().level == logging.INFO, "it was not what has changed"
        await _reload(router, "observability: {log_level: error}\n")
        logging.getLogger().setLevel(logging.INFO)  # as that of a worker's own process
        await _until(lambda: logging.getLogger().level == logging.ERROR)
    finally:
        running.cancel()


async def test_the_router_obeys_at_once(router: RouterRole, channel: grpc.aio.Channel) -> None:
    stub = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]
    session = stub.Session()
    hello = router_pb2.Hello(apiserver_id="api-0")
    await session.write(_alone(hello=hello))
    assert (await session.read()).messages[0].HasField("state")
    reload = asyncio.create_task(_reload(router, "scheduling: {max_queued_requests: 0}\n"))
    for only_check in (True, False):
        question = (await session.read()).messages[0].question
        assert question.manifest.only_check is only_check
        answer = router_pb2.Answer(number=question.number)
        await session.write(_alone(answer=answer))
    assert await reload == ["live: scheduling.max_queued_requests: 1024 -> 0"]
    await session.write(_alone(admit=router_pb2.Admit(request_id="a", model="m")))
    assert (await session.read()).messages[0].refused.error == "QueueFull"


def _alone(**message: Any) -> router_pb2.RouterSessionRequests:
    return router_pb2.RouterSessionRequests(messages=[router_pb2.RouterSessionRequest(**message)])


async def test_a_bad_manifest_is_refused_with_its_line(router: RouterRole) -> None:
    with pytest.raises(InvalidRequest, match=r"m.yaml:3: scheduling.srpt_bias: "):
        await _reload(router, "scheduling: {srpt_bias: -1}\n")
    assert await _reload(router, "scheduling: {srpt_bias: 1.5}\n") == [
        "live: scheduling.srpt_bias: 5.0 -> 1.5"
    ]


async def test_a_request_that_nobody_remembers(router: RouterRole) -> None:
    with pytest.raises(NotFound, match="no apiserver remembers a request gone-1"):
        await explain_request(RouterAddresses((f"127.0.0.1:{router.port}",)), "gone-1")
