"""An apiserver in this process, in front of a router and workers that tests script.

The model's directory has a tokenizer (one token a byte) and no weights. The fake model continues
every prompt with the bytes of TEXT from position len(prompt) on, so whoever draws the next token,
prefill, decode, or a worker that took over, must draw the same.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from llmserve.config.schema import Manifest
from llmserve.config.wanted_models import AnsweringModels, ServedName, parse_entry
from llmserve.core.adapters import AdapterLoad, AdapterReport, AdapterState, AdapterTier, NamedAdapter
from llmserve.core.errors import LLMServeError, ModelNotFound, NotFound, WorkerLost
from llmserve.core.ids import AdapterDigest, RequestId
from llmserve.core.request import (
    Acceptance,
    EngineOutput,
    FinishReason,
    HandoverReport,
    Logprobs,
    Outcome,
    PooledOutput,
    PrefillStats,
)
from llmserve.rpc.adapters import encode_adapter_report, encode_named, encode_names
from llmserve.rpc.codec import (
    decode_outcome,
    decode_params,
    encode_outcome,
    encode_outputs,
)
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc, worker_pb2, worker_pb2_grpc
from llmserve.rpc.gen.llmserve.v1.common_pb2 import (
    WORKER_ROLE_AGGREGATED,
    WORKER_ROLE_DECODE,
    WORKER_ROLE_PREFILL,
    KvShape,
    WorkerInfo,
)
from llmserve.rpc.leader import RouterAddresses
from llmserve.rpc.models import decode_answering, encode_served
from llmserve.rpc.server import RpcServer, traceparent_of
from llmserve.workers.sessions import merge
from tests.integration.apiserver.manifests import manifest_of

MODEL = "tiny"
TEXT = b"the quick brown fox jumps over the lazy dog. "
WAIT_SECONDS = 30.0
ANSWER_SECONDS = 50.0  # a first grammar waits until its compiler has imported vLLM
MAX_MODEL_LEN = 200
SMALL_LIMITS = {"body_kib": 97}  # where the manifest sets none


class Watched:
    """Something a test waits on: call changed() after every change, until() to wait for one."""

    def __init__(self) -> None:
        self._changes = asyncio.Event()

    def changed(self) -> None:
        self._changes.set()
        self._changes = asyncio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(ANSWER_SECONDS):
            while not holds():
                await self._changes.wait()

    async def turn(self) -> None:
        """Lets everything else run once."""
        await asyncio.sleep(0)


class Pushes:
    """What prefill and decode workers say to each other of pushes: that they are done."""

    def __init__(self) -> None:
        self._done: dict[str, asyncio.Event] = {}

    def __getitem__(self, transfer_id: str) -> asyncio.Event:
        return self._done.setdefault(transfer_id, asyncio.Event())


class FakeWorker(Watched, worker_pb2_grpc.WorkerServicer):
    """Draws bytes of TEXT. pause_at: the index of the token before which a request waits for `go`. at_once:
    tokens in each output after the first, as of an engine that speculates."""

    def __init__(self, name: str, role: int, first_token: int, eos: int, model: str = MODEL) -> None:
        super().__init__()
        self.name, self.role, self.model = name, role, model
        self.seen: dict[str, worker_pb2.GenerateRequest] = {}
        self.aborted: list[str] = []
        self.released: list[str] = []
        self.released_by: list[str] = []  # the traceparents of those calls
        self.running: set[str] = set()
        self.pause_at: int | None = None
        self.at_once = 1
        self.acceptance: Acceptance | None = None  # of every request, with its last output
        self.go = asyncio.Event()
        self.obeys_aborts = True
        self.fail_with: LLMServeError | None = None
        self.text = TEXT
        self.cached_tokens = self.created_tokens = 0
        self.handover: HandoverReport | None = None  # of requests that fetch KV
        self.pushes = Pushes()  # those of a FakeCluster are shared
        self.learns_first_token = True
        self.block_size_tokens = 16
        self._first_token, self._eos = first_token, eos
        self._server: RpcServer | None = None
        self._epoch = 0
        self.address = ""
        self._outboxes: set[asyncio.Queue[EngineOutput]] = set()

    async def start(self) -> None:
        self._epoch += 1
        self._server = RpcServer(self.address or "127.0.0.1:0")
        self._server.add(worker_pb2_grpc.add_WorkerServicer_to_server, self, "llmserve.v1.Worker")
        self.address = f"127.0.0.1:{await self._server.start()}"

    async def crash(self) -> None:
        if self._server is not None:
            await self._server.aclose()

    def info(self) -> WorkerInfo:
        return WorkerInfo(
            worker_id=self.name,
            role=self.role,  # type: ignore[arg-type]
            address=self.address,
            epoch=self._epoch,
            model=self.model,
            kv_shape=KvShape(
                model_revision="r1" if self.model == MODEL else f"r1 of {self.model}",
                kv_dtype="bfloat16",
                layout="LBHNC",
                block_size_tokens=self.block_size_tokens,
            ),
            max_model_len_tokens=MAX_MODEL_LEN,
            handover_endpoints=["127.0.0.1:1"],
        )

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[worker_pb2.WorkerSessionRequests], context: Any
    ) -> AsyncIterator[worker_pb2.WorkerSessionResponse]:
        outbox: asyncio.Queue[EngineOutput] = asyncio.Queue()
        tasks: dict[str, asyncio.Task[None]] = {}
        reader = asyncio.create_task(self._read(request_iterator, outbox, tasks))
        try:
            while True:
                output = await outbox.get()
                yield encode_outputs([output])
        finally:
            for task in (reader, *tasks.values()):
                task.cancel()

    async def _read(
        self,
        requests: AsyncIterator[worker_pb2.WorkerSessionRequests],
        outbox: "asyncio.Queue[EngineOutput]",
        tasks: dict[str, asyncio.Task[None]],
    ) -> None:
        async for message in messages_of(requests):
            if message.HasField("generate"):
                request = message.generate
                self.seen[request.request_id] = request
                self.running.add(request.request_id)
                tasks[request.request_id] = asyncio.create_task(self._generate(request, outbox))
            for name in message.abort.request_ids:
                self.aborted.append(name)
                self.running.discard(name)
                if name in tasks and self.obeys_aborts:
                    tasks[name].cancel()
            self.changed()

    async def _generate(
        self, request: worker_pb2.GenerateRequest, outbox: "asyncio.Queue[EngineOutput]"
    ) -> None:
        if request.pooling_params:
            outbox.put_nowait(_pooled(request))
            return
        params = msgspec.msgpack.decode(request.sampling_params)
        prompt = [*request.prompt_token_ids, *await self._arrived(request)]
        step: EngineOutput | None = None
        for index in range(request.limits.max_tokens):
            if index == self.pause_at:
                self.changed()
                await self.go.wait()
            if self.fail_with is not None:
                error = f"{type(self.fail_with).__name__}: {self.fail_with.message}"
                outbox.put_nowait(
                    EngineOutput(RequestId(request.request_id), finish_reason=FinishReason.ERROR, error=error)
                )
                return
            token = self._draw(len(prompt) + index)
            stop = token in request.limits.stop_token_ids
            last = stop or index == request.limits.max_tokens - 1
            output = self._output(request, params, prompt, token, index, last, stop)
            step = output if step is None else merge(step, output)
            if last or index == 0 or len(step.token_ids) == self.at_once:
                outbox.put_nowait(step)
                step = None
                await asyncio.sleep(0)
        self.running.discard(request.request_id)
        self.changed()

    async def _arrived(self, request: worker_pb2.GenerateRequest) -> list[int]:
        """Waits for a push, if there is to be one; the token that came with it."""
        asked = decode_params(request.kv_transfer_params) or {}
        if not asked.get("do_remote_prefill") or "push" not in asked:
            return []
        await self.pushes[asked["push"]["transfer_id"]].wait()
        goes_on = asked["push"]["continues"] and self.learns_first_token
        return [self._draw(len(request.prompt_token_ids))] if goes_on else []

    def _draw(self, position: int) -> int:
        byte = self.text[position % len(self.text)]
        return self._eos if byte == 0 else self._first_token + byte

    def _output(
        self,
        request: worker_pb2.GenerateRequest,
        params: dict[str, Any],
        prompt: list[int],
        token: int,
        index: int,
        last: bool,
        stop: bool,
    ) -> EngineOutput:
        asked = decode_params(request.kv_transfer_params) or {}
        hands_over = last and not stop and asked.get("do_remote_decode")
        first = index == 0
        if hands_over and "push" in asked:
            self.pushes[asked["push"]["transfer_id"]].set()
        wants_prompt = first and params.get("prompt_logprobs") is not None
        return EngineOutput(
            RequestId(request.request_id),
            token_ids=[token],
            finish_reason=(FinishReason.STOP if stop else FinishReason.LENGTH) if last else None,
            logprobs=_sampled(token, params),
            prompt_logprobs=_logprobs(prompt[1:], params["prompt_logprobs"]) if wants_prompt else None,
            kv_transfer_params=self._ticket(request) if hands_over else None,
            prefill_stats=PrefillStats(len(prompt), self.cached_tokens, 0, self.created_tokens)
            if first
            else None,
            handover=self.handover if first and asked.get("do_remote_prefill") else None,
            adapter_load=AdapterLoad(AdapterTier.DISK, 0.25) if first and request.adapter else None,
            acceptance=self.acceptance if last else None,
        )

    def _ticket(self, request: worker_pb2.GenerateRequest) -> dict[str, Any]:
        return {"do_remote_prefill": True, "worker_id": self.name, "lease_id": request.request_id}

    async def ReleaseLease(  # noqa: N802
        self, request: worker_pb2.ReleaseLeaseRequest, context: Any
    ) -> worker_pb2.ReleaseLeaseResponse:
        self.released.append((decode_params(request.kv_transfer_params) or {})["lease_id"])
        self.released_by.append(traceparent_of(context.invocation_metadata()))
        self.changed()
        return worker_pb2.ReleaseLeaseResponse(released=True)


def _pooled(request: worker_pb2.GenerateRequest) -> EngineOutput:
    """An embedding that tells the prompt's length and its first token."""
    prompt = request.prompt_token_ids
    values = np.array([len(prompt), prompt[0]], dtype="<f4").tobytes()
    return EngineOutput(
        RequestId(request.request_id),
        finish_reason=FinishReason.STOP,
        prefill_stats=PrefillStats(len(prompt)),
        pooled=PooledOutput((2,), values),
    )


def _sampled(token: int, params: dict[str, Any]) -> Logprobs | None:
    if params.get("logprob_token_ids"):
        asked = [token, *params["logprob_token_ids"]]
        return _logprob_rows([asked], len(asked))
    return _logprobs([token], params["logprobs"]) if params.get("logprobs") is not None else None


def _logprobs(tokens: list[int], top: int) -> Logprobs:
    """The token itself at -1, then `top` others, each half a point less likely."""
    return _logprob_rows([[token + i for i in range(top + 1)] for token in tokens], top + 1)


def _logprob_rows(tokens: list[list[int]], width: int) -> Logprobs:
    """tokens: of `width` each; none for the prompt logprobs of a prompt of one token, as vLLM has them."""
    ids = np.array(tokens, dtype="<i4")
    values = np.array([[-1.0 - 0.5 * i for i in range(width)] for _ in tokens], dtype="<f4")
    return Logprobs(width, ids.tobytes(), values.tobytes(), np.ones(len(tokens), dtype="<i4").tobytes())


async def messages_of(batches: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The messages of a stream, one by one."""
    async for batch in batches:
        for message in batch.messages:
            yield message


class FakeRouter(Watched, router_pb2_grpc.RouterServicer):
    """Places on the first worker of the model and of a role that is not excluded. refuse_with: the next
    answers. silent: no hello is answered before members are told. gone: versions of adapters that requests
    are refused for."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[FakeWorker] = []
        self.admits: list[router_pb2.Admit] = []
        self.hellos: list[router_pb2.Hello] = []
        self.done: list[tuple[str, Outcome]] = []
        self.cached: list[int | None] = []  # of each that is done, as its engine told
        self.handover_seconds: list[float | None] = []
        self.pushes = False  # says so with each placement
        self.first_tokens: list[str] = []
        self.failed_workers: list[str] = []
        self.refuse_with: tuple[Outcome, LLMServeError] | None = None
        self.hold = self.silent = False
        self.adapters: list[NamedAdapter] = []
        self.gone: set[str] = set()
        self.served: tuple[ServedName, ...] | None = None
        self.answering: list[AnsweringModels] = []  # what apiservers said of models
        self.model_loads: list[router_pb2.LoadModelRequest] = []
        self.sources: dict[str, AdapterDigest | LLMServeError] = {
            "dir:/adapters/any": AdapterDigest("a" * 64)
        }
        self.load_now = asyncio.Event()
        self.load_now.set()
        self.loads: list[router_pb2.LoadAdapterRequest] = []
        self.unloads: list[router_pb2.UnloadAdapterRequest] = []
        self.keeps: list[router_pb2.KeepAdapterRequest] = []
        self.drains: list[router_pb2.DrainRequest] = []
        self.address = ""
        self._server: RpcServer | None = None
        self._outboxes: set[asyncio.Queue[router_pb2.RouterSessionResponse]] = set()

    async def start(self) -> None:
        self._server = RpcServer(self.address or "127.0.0.1:0")
        self._server.add(router_pb2_grpc.add_RouterServicer_to_server, self, "llmserve.v1.Router")
        self.address = f"127.0.0.1:{await self._server.start()}"

    async def crash(self) -> None:
        if self._server is not None:
            await self._server.aclose()
            self._server = None

    async def members(self, *workers: FakeWorker) -> None:
        self.workers = list(workers)
        for outbox in self._outboxes:
            outbox.put_nowait(self._state())

    async def names(self, *adapters: NamedAdapter) -> None:
        """Tells all apiservers that these are the adapters that requests may name."""
        self.adapters = list(adapters)
        for outbox in self._outboxes:
            outbox.put_nowait(self._state())

    def _state(self) -> router_pb2.RouterSessionResponse:
        workers = [worker.info() for worker in self.workers]
        served = None if self.served is None else encode_served(self.served)
        state = router_pb2.ClusterState(workers=workers, adapters=encode_names(self.adapters), models=served)
        return router_pb2.RouterSessionResponse(state=state)

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[router_pb2.RouterSessionRequests], context: Any
    ) -> AsyncIterator[router_pb2.RouterSessionResponses]:
        outbox: asyncio.Queue[router_pb2.RouterSessionResponse] = asyncio.Queue()
        self._outboxes.add(outbox)
        reader = asyncio.create_task(self._read(request_iterator, outbox))
        try:
            while True:
                yield router_pb2.RouterSessionResponses(messages=[await outbox.get()])
        finally:
            self._outboxes.discard(outbox)
            reader.cancel()

    async def _read(
        self,
        requests: AsyncIterator[router_pb2.RouterSessionRequests],
        outbox: "asyncio.Queue[router_pb2.RouterSessionResponse]",
    ) -> None:
        async for message in messages_of(requests):
            match message.WhichOneof("message"):
                case "hello":
                    self.hellos.append(message.hello)
                    if not self.silent:
                        outbox.put_nowait(self._state())
                case "admit":
                    self.admits.append(message.admit)
                    if not self.hold:
                        outbox.put_nowait(self._answer(message.admit))
                case "done":
                    told = message.done.HasField("cached_tokens")
                    self.cached.append(message.done.cached_tokens if told else None)
                    handed = message.done.HasField("handover_seconds")
                    self.handover_seconds.append(message.done.handover_seconds if handed else None)
                    self.done.append((message.done.request_id, decode_outcome(message.done.outcome)))
                case "first_token":
                    self.first_tokens.append(message.first_token.request_id)
                case "models":
                    self.answering.append(decode_answering(message.models))
                case "worker_failed":
                    self.failed_workers.append(message.worker_failed.worker_id)
            self.changed()

    # -- models: each load is ready at once

    async def LoadModel(  # noqa: N802
        self, request: router_pb2.LoadModelRequest, context: Any
    ) -> router_pb2.ModelStatus:
        model = parse_entry(request.entry)
        self.model_loads.append(request)
        return router_pb2.ModelStatus(number=1, name=model.served_name, source=model.source, state="ready")

    async def UnloadModel(  # noqa: N802
        self, request: router_pb2.UnloadModelRequest, context: Any
    ) -> router_pb2.ModelStatus:
        if request.name not in [parse_entry(one.entry).served_name for one in self.model_loads]:
            raise NotFound(f"there is no model {request.name}")
        return router_pb2.ModelStatus(number=1, name=request.name, state="draining")

    async def ListModels(  # noqa: N802
        self, request: router_pb2.ListModelsRequest, context: Any
    ) -> router_pb2.ListModelsResponse:
        status = router_pb2.ModelStatus(number=2, name="b", state="fetching", detail="42 %", source="hub:o/b")
        return router_pb2.ListModelsResponse(models=[status])

    # -- adapters: what is at a source is scripted

    async def LoadAdapter(  # noqa: N802
        self, request: router_pb2.LoadAdapterRequest, context: Any
    ) -> router_pb2.LoadAdapterResponse:
        self.loads.append(request)
        self.changed()
        await self.load_now.wait()
        at_source = self.sources.get(request.source, ModelNotFound(f"nothing is at {request.source}"))
        if isinstance(at_source, LLMServeError):
            raise at_source
        adapter = NamedAdapter(request.name, at_source, request.model or MODEL, request.source)
        await self.names(*(one for one in self.adapters if one.name != request.name), adapter)
        return router_pb2.LoadAdapterResponse(adapter=self._status(adapter))

    async def UnloadAdapter(  # noqa: N802
        self, request: router_pb2.UnloadAdapterRequest, context: Any
    ) -> router_pb2.UnloadAdapterResponse:
        self.unloads.append(request)
        adapter = self._named(request.name)
        await self.names(*(one for one in self.adapters if one.name != request.name))
        return router_pb2.UnloadAdapterResponse(adapter=self._status(adapter, AdapterState.DRAINING))

    async def KeepAdapter(  # noqa: N802
        self, request: router_pb2.KeepAdapterRequest, context: Any
    ) -> router_pb2.KeepAdapterResponse:
        self.keeps.append(request)
        return router_pb2.KeepAdapterResponse(adapter=self._status(self._named(request.name)))

    async def ListAdapters(  # noqa: N802
        self, request: router_pb2.ListAdaptersRequest, context: Any
    ) -> router_pb2.ListAdaptersResponse:
        return router_pb2.ListAdaptersResponse(adapters=map(self._status, self.adapters))

    async def GetClusterStatus(  # noqa: N802
        self, request: router_pb2.GetClusterStatusRequest, context: Any
    ) -> router_pb2.GetClusterStatusResponse:
        workers = [router_pb2.WorkerStatus(info=one.info(), available=True) for one in self.workers]
        return router_pb2.GetClusterStatusResponse(workers=workers, leads=True, leader=self.address)

    async def Drain(  # noqa: N802
        self, request: router_pb2.DrainRequest, context: Any
    ) -> router_pb2.DrainResponse:
        self.drains.append(request)
        return router_pb2.DrainResponse()

    def _named(self, name: str) -> NamedAdapter:
        for adapter in self.adapters:
            if adapter.name == name:
                return adapter
        raise NotFound(f"no adapter has the name {name}")

    def _status(
        self, adapter: NamedAdapter, state: AdapterState = AdapterState.READY
    ) -> router_pb2.AdapterStatus:
        report = AdapterReport(1, adapter.digest, tier=AdapterTier.DISK, load_seconds=0.5)
        place = router_pb2.AdapterPlace(worker_id="decode-0", report=encode_adapter_report(report))
        return router_pb2.AdapterStatus(adapter=encode_named(adapter), state=state, places=[place])

    async def Explain(  # noqa: N802
        self, request: router_pb2.ExplainRequest, context: Any
    ) -> router_pb2.ExplainResponse:
        raise NotFound(f"no apiserver remembers request {request.record.request_id}")

    def _answer(self, admit: router_pb2.Admit) -> router_pb2.RouterSessionResponse:
        if self.refuse_with is not None:
            return _refusal(admit, *self.refuse_with)
        if admit.adapter in self.gone:
            return _refusal(admit, Outcome.REJECTED, NotFound(f"no adapter has the digest {admit.adapter}"))
        of_model = [worker for worker in self.workers if worker.model == admit.model]
        usable = [worker for worker in of_model if worker.name not in admit.excluded_workers]
        prefill = next((w for w in usable if w.role == WORKER_ROLE_PREFILL), None)
        decode = next((w for w in usable if w.role != WORKER_ROLE_PREFILL), None)
        if decode is None or (prefill is None and decode.role != WORKER_ROLE_AGGREGATED):
            return _refusal(admit, Outcome.EVICTED, WorkerLost("no worker is left"))
        placement = router_pb2.Placement(
            prefill=prefill.info() if prefill and decode.role == WORKER_ROLE_DECODE else None,
            decode=decode.info(),
            push=self.pushes,
        )
        placed = router_pb2.Placed(request_id=admit.request_id, placement=placement)
        return router_pb2.RouterSessionResponse(placed=placed)


def _refusal(
    admit: router_pb2.Admit, outcome: Outcome, error: LLMServeError
) -> router_pb2.RouterSessionResponse:
    return router_pb2.RouterSessionResponse(
        refused=router_pb2.Refused(
            request_id=admit.request_id,
            outcome=encode_outcome(outcome),
            error=type(error).__name__,
            message=error.message,
            retry_after_seconds=error.retry_after_seconds or 0.0,
        )
    )


class FakeCluster:
    """A router with one worker of each disaggregated role, and an apiserver in front. others: more models,
    of the same directory, without workers."""

    def __init__(self, model_dir: Path, model: str = MODEL, others: tuple[str, ...] = ()) -> None:
        self._model_dir, self._model, self._others = model_dir, model, others
        self._tokens = json.loads((model_dir / "tokens.json").read_text())
        self.registry = CollectorRegistry()
        self.pushes = Pushes()
        self.router = FakeRouter()
        self.prefill = self.worker("prefill-0", WORKER_ROLE_PREFILL)
        self.decode = self.worker("decode-0", WORKER_ROLE_DECODE)
        self.extra: list[FakeWorker] = []
        self.apiserver: Any = None
        self.url = ""

    def worker(self, name: str, role: int, model: str = "") -> FakeWorker:
        worker = FakeWorker(name, role, self._tokens["first"], self._tokens["eos"], model or self._model)
        worker.pushes = self.pushes
        return worker

    async def add(self, name: str, role: int, model: str = "") -> FakeWorker:
        worker = self.worker(name, role, model)
        await worker.start()
        self.extra.append(worker)
        await self.router.members(*self.router.workers, worker)
        return worker

    async def start(self, manifest: dict[str, Any]) -> None:
        from llmserve.apiserver.apiserver import Apiserver
        from llmserve.apiserver.options import ApiserverOptions, ModelDirectory

        await self.router.start()
        await self.prefill.start()
        await self.decode.start()
        self.router.workers = [self.prefill, self.decode]
        self.router.pushes = manifest.get("transfer") == {"mode": "push"}
        options = ApiserverOptions(
            name="apiserver-0",
            http="127.0.0.1:0",
            routers=RouterAddresses((self.router.address,)),
            models=tuple(ModelDirectory(name, self._model_dir) for name in (self._model, *self._others)),
        )
        security = {"limits": SMALL_LIMITS, **manifest.get("security", {})}
        validated = Manifest.model_validate({**manifest, "security": security})
        self.apiserver = Apiserver(options, validated, self.registry)
        self.url = f"http://127.0.0.1:{await self.apiserver.start()}"
        async with asyncio.timeout(WAIT_SECONDS):
            while not self.apiserver._router.connected:
                await self.router.turn()

    async def aclose(self) -> None:
        for worker in (self.prefill, self.decode, *self.extra):
            worker.go.set()
        if self.apiserver is not None:
            await self.apiserver.aclose(drain_seconds=0)
        await self.router.crash()
        for worker in (self.prefill, self.decode, *self.extra):
            await worker.crash()

    async def named(self, *adapters: NamedAdapter) -> None:
        """Returns when the apiserver knows these names, and no others."""
        names, expected = self.apiserver._adapters, {one.name: one for one in adapters}
        await self.router.names(*adapters)
        async with asyncio.timeout(WAIT_SECONDS):
            while {name: names.meaning(name) for name in names.requests} != expected:
                await names.changed.wait()

    def count(self, name: str, **labels: str) -> float:
        """Returns the sum over all series with these labels."""
        samples = (sample for family in self.registry.collect() for sample in family.samples)
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())

    async def settled(self) -> None:
        """Waits until no request runs anywhere."""
        await self.router.until(lambda: self.count("apiserver_running_requests") == 0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    special = ["<s>", "</s>"]
    alphabet = _byte_alphabet()
    vocab = {text: index for index, text in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = (
        "{% for message in messages %}{{ message.content }}"
        "{% if message.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=MAX_MODEL_LEN,
        bos_token_id=0,
        eos_token_id=1,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    # As models have it. Without it, vLLM would make it from the config for each apiserver.
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    (folder / "tokens.json").write_text(json.dumps({"first": len(special), "eos": 1}))
    return folder


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins of the bytes 0 to 255, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    return manifest_of()


@pytest.fixture(scope="session")
def model_name() -> str:
    return MODEL


@pytest.fixture(scope="session")
def make_cluster(tiny_model: Path) -> Callable[[], FakeCluster]:
    """For tests that run it in a loop of their own."""
    return lambda: FakeCluster(tiny_model, MODEL)


@pytest_asyncio.fixture
async def cluster(tiny_model: Path, manifest: dict[str, Any], model_name: str) -> AsyncIterator[FakeCluster]:
    started = FakeCluster(tiny_model, model_name)
    try:
        await started.start(manifest)
        yield started
    finally:
        await started.aclose()


@pytest_asyncio.fixture
async def prefill() -> AsyncIterator[FakeWorker]:
    """A worker on its own."""
    worker = FakeWorker("prefill-0", WORKER_ROLE_PREFILL, first_token=2, eos=1)
    await worker.start()
    yield worker
    worker.go.set()
    await worker.crash()


@pytest_asyncio.fixture
async def http(cluster: FakeCluster) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=ANSWER_SECONDS) as client:
        yield client
