"""Models over the router's real gRPC: with a manager whose engines are only names, an apiserver that only
says what it takes, and routers that start again."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from llmserve.config.plan_types import ProcessRole, ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.config.wanted_models import AnsweringModels, ModelOrder
from llmserve.core.clock import LeaseClock
from llmserve.core.errors import DeadlineExceeded, InvalidRequest, NotFound, StartFailed, Unavailable
from llmserve.core.tasks import TaskOwner
from llmserve.router.leader.file_state import FileState
from llmserve.router.models.book import ON_KUBERNETES
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.rpc.leader import RouterAddresses
from llmserve.rpc.model_calls import ModelClient, model_row
from llmserve.rpc.models import encode_answering
from llmserve.runner.models.follower import ModelFollower
from llmserve.runner.models.manager import ModelManager, PlannedModel
from llmserve.runner.models.memory import NOTHING, NeededMemory

MANIFEST = Manifest.model_validate(
    {
        "kind": "LLMServe",
        "models": [{"source": "hub:o/a", "name": "a"}],
        "scheduling": {"drain_timeout_seconds": 5},
    }
)
B = json.dumps({"source": "hub:o/b", "name": "b"})
WAIT_SECONDS = 20.0


class Engines:
    """A ModelProcesses. wrong: models that cannot be had. started: may a start end."""

    def __init__(self) -> None:
        self.running, self.wrong, self.started = ["a-0"], set[str](), asyncio.Event()
        self.started.set()

    async def prepare(self, manifest: Manifest, on_progress: Callable[[str], None]) -> str:
        on_progress("42 %")
        if manifest.model.served_name in self.wrong:
            raise StartFailed("No space left on device")
        return "/models"

    async def plan(self, manifest: Manifest, directory: str, swap: Sequence[str]) -> PlannedModel:
        worker = ProcessSpec(ProcessRole.AGGREGATED, f"{manifest.model.served_name}-0", "m")
        return PlannedModel(directory, (worker,))

    async def check_room(
        self, name: str, needed: NeededMemory, leaving: NeededMemory, coming: Sequence[NeededMemory]
    ) -> None:
        """There is always room."""

    async def start(
        self,
        order: ModelOrder,
        manifest: Manifest,
        planned: PlannedModel,
        on_progress: Callable[[str], None],
    ) -> None:
        await self.started.wait()
        self.running += [worker.name for worker in planned.workers]

    async def stop(self, workers: Sequence[str]) -> None:
        self.running = [name for name in self.running if name not in workers]


class ModelCluster:
    def __init__(self, address: str, engines: Engines, owner: TaskOwner) -> None:
        self.routers, self.engines = RouterAddresses((address,)), engines
        self.client = ModelClient(self.routers)
        self.manager = ModelManager(MANIFEST, {"a": ["a-0"]}, engines, owner, lambda: self.follower.report())
        self.follower = ModelFollower(self.routers, self.manager.reports, self.manager.apply)
        self.manager.became_ready("a", "/models", NOTHING)
        owner.spawn("follow", self.follower.run())

    async def states(self) -> dict[str, str]:
        return {status.name: status.state for status in await self.client.list()}

    async def until(self, **states: str) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                with suppress(Unavailable):  # this machine may be slow
                    if await self.states() == states:
                        return
                await asyncio.sleep(0.02)


StartRouter = Callable[..., Awaitable[tuple[RouterRole, str]]]


@pytest.fixture
async def start_router(tmp_path: Path) -> AsyncIterator[StartRouter]:
    """Starts a router that knows what an earlier one has saved."""
    async with AsyncExitStack() as stack:

        async def run(manifest: Manifest = MANIFEST, port: int = 0) -> tuple[RouterRole, str]:
            router = RouterRole(
                RouterSettings.of(manifest),
                listen=f"127.0.0.1:{port}",
                state=FileState(LeaseClock(), tmp_path),
                manifest=manifest,
            )
            stack.push_async_callback(router.aclose)
            await router.start()
            return router, f"127.0.0.1:{router.port}"

        yield run


@pytest.fixture
async def owner() -> AsyncIterator[TaskOwner]:
    made = TaskOwner("test")
    yield made
    await made.aclose()


@pytest.fixture
async def cluster(start_router: StartRouter, owner: TaskOwner) -> ModelCluster:
    _, address = await start_router()
    made = ModelCluster(address, Engines(), owner)
    await made.until(a="ready")
    return made


async def test_a_load_returns_when_it_is_ready(cluster: ModelCluster) -> None:
    seen: list[str] = []
    loaded = await cluster.client.load(B, WAIT_SECONDS, on_status=lambda status: seen.append(status.state))
    assert loaded.state == "ready"
    assert set(seen) <= {"registered", "fetching", "starting"}
    assert cluster.engines.running == ["a-0", "b-0"]
    assert await cluster.client.load(B, WAIT_SECONDS) == loaded
    unloaded = await cluster.client.unload("a", WAIT_SECONDS)
    assert cluster.engines.running == ["b-0"]
    assert model_row(unloaded)["state"] == "draining"
    assert await cluster.states() == {"b": "ready"}


async def test_a_swap_ends_with_the_new_model_alone(cluster: ModelCluster) -> None:
    loaded = await cluster.client.load(B, WAIT_SECONDS, swap="a")
    assert loaded.state == "ready"
    assert cluster.engines.running == ["b-0"]
    assert await cluster.states() == {"b": "ready"}


async def test_what_cannot_be_had_is_told_with_its_reason(cluster: ModelCluster) -> None:
    cluster.engines.wrong.add("b")
    with pytest.raises(StartFailed, match="No space left on device"):
        await cluster.client.load(B, WAIT_SECONDS)
    failed = [model_row(status) for status in await cluster.client.list()][1]
    assert (failed["state"], failed["error"]) == ("failed", "No space left on device")


@pytest.mark.parametrize(
    ("entry", "swap", "kind", "why"),
    [
        ('{"source": "hub:o/c", "nam": "c"}', "", InvalidRequest, "nam: unknown key; did you mean 'name'"),
        ('{"source": "hub:o/c", "name": "a"}', "", InvalidRequest, "model a is ready, from hub:o/a"),
        ('{"source": "hub:o/c"}', "x", NotFound, "there is no model x"),
        ('{"source": "hub:o/c", "replicas": {"prefill": 0}}', "", InvalidRequest, "needs a prefill engine"),
    ],
)
async def test_what_is_wrong_is_refused_at_once(
    cluster: ModelCluster, entry: str, swap: str, kind: type[Exception], why: str
) -> None:
    with pytest.raises(kind, match=why):
        await cluster.client.load(entry, WAIT_SECONDS, swap=swap)
    assert await cluster.states() == {"a": "ready"}


async def test_unloads_that_cannot_be(cluster: ModelCluster) -> None:
    with pytest.raises(InvalidRequest, match="model a is the only one"):
        await cluster.client.unload("a", WAIT_SECONDS)
    with pytest.raises(NotFound, match="there is no model b"):
        await cluster.client.unload("b", WAIT_SECONDS)


async def test_who_waits_is_told_that_it_was_unloaded(cluster: ModelCluster) -> None:
    cluster.engines.started.clear()
    loading = asyncio.ensure_future(cluster.client.load(B, WAIT_SECONDS))
    await cluster.until(a="ready", b="starting")
    await cluster.client.unload("b", WAIT_SECONDS)
    with pytest.raises(NotFound, match="model b was unloaded"):
        await loading
    assert cluster.engines.running == ["a-0"]


async def test_a_pull_of_a_model_that_is_being_loaded_waits_for_no_engine(cluster: ModelCluster) -> None:
    cluster.engines.started.clear()
    await cluster.client.load(B, 0)
    pulled = await cluster.client.load(B, WAIT_SECONDS, pull=True)
    assert pulled.state == "starting"


async def test_a_load_while_it_is_being_loaded_joins_and_another_entry_is_refused(
    cluster: ModelCluster,
) -> None:
    cluster.engines.started.clear()
    both = [asyncio.ensure_future(cluster.client.load(B, WAIT_SECONDS)) for _ in range(2)]
    await cluster.until(a="ready", b="starting")
    with pytest.raises(InvalidRequest, match="model b is starting, from hub:o/b: unload it before"):
        await cluster.client.load('{"source": "hub:o/other", "name": "b"}', WAIT_SECONDS)
    cluster.engines.started.set()
    first, second = await asyncio.gather(*both)
    assert (first.state, first.number) == ("ready", second.number)
    assert cluster.engines.running == ["a-0", "b-0"]


async def test_models_that_are_loaded_at_the_same_time_wait_for_each_other_no_more_than_they_must(
    cluster: ModelCluster,
) -> None:
    cluster.engines.started.clear()
    await cluster.client.load(B, 0)
    await cluster.until(a="ready", b="starting")
    cluster.engines.wrong.add("c")
    with pytest.raises(StartFailed, match="No space left on device"):
        await cluster.client.load('{"source": "hub:o/c", "name": "c"}', WAIT_SECONDS)
    await cluster.until(a="ready", b="starting", c="failed")


async def test_a_load_goes_on_after_the_patience_of_who_asked(cluster: ModelCluster) -> None:
    cluster.engines.started.clear()
    with pytest.raises(DeadlineExceeded, match="model b is starting: it goes on all the same"):
        await cluster.client.load(B, 0.4)
    cluster.engines.started.set()
    await cluster.until(a="ready", b="ready")


async def test_a_router_that_starts_again_goes_on_with_a_load(
    start_router: StartRouter, owner: TaskOwner
) -> None:
    first, address = await start_router()
    cluster = ModelCluster(address, Engines(), owner)
    await cluster.until(a="ready")
    cluster.engines.started.clear()
    loading = asyncio.ensure_future(cluster.client.load(B, WAIT_SECONDS, swap="a"))
    await cluster.until(b="starting")
    await first.aclose()
    await start_router(port=first.port)
    await cluster.until(b="starting")
    cluster.engines.started.set()
    assert (await loading).state == "ready"
    assert cluster.engines.running == ["b-0"]


async def test_an_apiserver_has_to_take_its_requests_first(cluster: ModelCluster) -> None:
    async with cluster.routers.open(cluster.routers.addresses[0]) as channel:
        stub = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]  # generated
        session = Apiserver(stub)
        await session.say("a")
        cluster_state = await session.state()
        assert [one.name for one in cluster_state.models.models] == ["a"]
        loading = asyncio.ensure_future(cluster.client.load(B, WAIT_SECONDS))
        while [one.name for one in (await session.state()).models.models] != ["a", "b"]:
            pass
        await cluster.until(a="ready", b="starting")
        await session.say("a", "b")
        assert (await loading).state == "ready"


class Apiserver:
    """A session of an apiserver."""

    def __init__(self, stub: router_pb2_grpc.RouterStub) -> None:
        self._call = stub.Session()

    async def say(self, *names: str) -> None:
        if not hasattr(self, "_greeted"):
            self._greeted = True
            await self._send(hello=router_pb2.Hello(apiserver_id="apiserver-0"))
        await self._send(models=encode_answering(AnsweringModels(frozenset(names))))

    async def _send(self, **message: object) -> None:
        request = router_pb2.RouterSessionRequest(**message)  # type: ignore[arg-type]
        await self._call.write(router_pb2.RouterSessionRequests(messages=[request]))

    async def state(self) -> router_pb2.ClusterState:
        """Returns the next state."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                batch: router_pb2.RouterSessionResponses = await self._call.read()
                for message in batch.messages:
                    if message.HasField("state"):
                        return message.state


async def test_on_kubernetes_they_come_with_the_manifest(start_router: StartRouter) -> None:
    manifest = Manifest.model_validate(MANIFEST.model_dump() | {"deployment": {"mode": "k8s"}})
    _, address = await start_router(manifest)
    client = ModelClient(RouterAddresses((address,)))
    assert [(one.name, one.state) for one in await client.list()] == [("a", "ready")]
    with pytest.raises(InvalidRequest) as refused:
        await client.load(B, WAIT_SECONDS)
    assert refused.value.message == ON_KUBERNETES
