"""VllmEngine: the Engine contract (engines/base.py) on vLLM's EngineCore client."""

import asyncio
import gzip
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from vllm.config.logging import LoggingConfig
from vllm.logger import DEFAULT_LOGGING_CONFIG
from vllm.platforms import current_platform
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError

from llmserve.config.conflict import Conflict, refuse
from llmserve.core.errors import DeadlineExceeded, EngineDead, InvalidRequest, StartFailed, TransferError
from llmserve.core.ids import AdapterDigest, RequestId
from llmserve.core.kv_params import addresses_for, check_params
from llmserve.core.process import descendants, read_effort
from llmserve.core.request import (
    EngineLoad,
    EngineOutput,
    EngineRequest,
    HandoverReport,
    KvEvents,
    KvPeer,
    WorkerRole,
)
from llmserve.engines.base import EngineInfo
from llmserve.engines.connector.settings import EngineReadyFile
from llmserve.engines.kv_transfer import query_status, set_peers
from llmserve.engines.spec import EngineSpec
from llmserve.engines.vllm.adapters import VllmAdapters
from llmserve.engines.vllm.args import (
    PROFILES,
    compiles,
    engine_args,
    executor_class,
    needs_compiler,
    set_scheduler,
)
from llmserve.engines.vllm.convert import to_core_request, to_engine_output
from llmserve.engines.vllm.early_process import EarlyProcess, starting_in
from llmserve.engines.vllm.environment import (
    asking_about_the_model,
    missing_compiler,
    set_engine_environment,
    wrong_build,
)
from llmserve.engines.vllm.failures import Cause, read_cause, write_logging
from llmserve.engines.vllm.kv_events import KvEventSource, events_endpoint
from llmserve.engines.vllm.options import option_refusals
from llmserve.engines.vllm.stats import EngineStats, VllmMetrics
from llmserve.engines.vllm.warm_up import warm_up
from llmserve.models.refusals import directory_refusals
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials

_log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 10.0
_SIDE_CHANNEL_SECONDS = 1.0
_STOPPED_POLL_SECONDS = 0.5


class VllmEngine:
    """registry: gets vLLM's own metrics (vllm:*); None: they are not counted. process: the one that the
    engine runs in; None: vLLM spawns it."""

    def __init__(
        self,
        spec: EngineSpec,
        registry: CollectorRegistry | None = None,
        process: EarlyProcess | None = None,
    ) -> None:
        self._spec = spec
        self._process = process
        self._registry = registry
        self._credentials = Credentials.read(CallerRole.WORKER, spec.worker_id)
        self._own_metrics: VllmMetrics | None = None
        self._core: AsyncMPClient | None = None
        self._kv_events: KvEventSource | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._stats = EngineStats()
        self._adapters = VllmAdapters(spec.lora.slots)
        self._info: EngineInfo | None = None
        self._children: frozenset[int] = frozenset()  # the processes of the engine, as it has started them
        self._constrained: set[str] = set()  # requests with a grammar that have no output yet
        self._fetching: set[str] = set()  # requests with KV of another engine that have not ended
        self._reports: dict[str, HandoverReport] = {}  # of their pulls that ended, until their next output

    async def start(self) -> EngineInfo:
        refuse(self._refusals())
        self._scratch = tempfile.TemporaryDirectory(prefix="llmserve-engine-")
        os.environ["VLLM_RPC_BASE_PATH"] = self._scratch.name  # vLLM's sockets are removed with it
        set_engine_environment(compiles=compiles(self._spec.engine), on_cpu=current_platform.is_cpu())
        scratch = Path(self._scratch.name)
        card_path = scratch / "card.json"
        try:
            # In a thread: it takes tens of seconds, during which health checks and signals must be served.
            self._core, config = await asyncio.to_thread(self._launch, scratch, str(card_path))
            self._kv_events = KvEventSource(events_endpoint(scratch))
            await self._make_ready(self._core)
        except StartFailed:
            raise
        except Exception as error:
            raise (read_cause(scratch) or Cause.of(error)).as_error() from error
        self._children = frozenset(descendants(os.getpid()))
        if self._registry is not None:
            self._own_metrics = VllmMetrics(config, self._registry)
        card = EngineReadyFile.read(card_path)
        self._stats.total_blocks = card.total_blocks
        self._kv_events.counted_group = card.counted_group
        self._info = EngineInfo(
            kv_dtype=card.kv_dtype,
            layout=card.layout,
            computation=card.computation,
            block_size_tokens=card.block_size_tokens,
            block_bytes=card.block_bytes,
            total_blocks=card.total_blocks,
            max_model_len_tokens=config.model_config.max_model_len,
            max_concurrency=config.scheduler_config.max_num_seqs,
            transports=card.transports,
            handover_endpoints=card.endpoints,
            lora=self._spec.lora,
        )
        return self._info

    async def _make_ready(self, core: AsyncMPClient) -> None:
        """Errors: ManifestError for a model that cannot do what it is to do; StartFailed."""
        task = self._spec.engine.task
        if task == "generate":
            await warm_up(core, self._spec.engine.grammar_backend)
        elif task not in (known := await core.get_supported_tasks_async()):
            refuse([Conflict.at(f"the model cannot {task}, but {', '.join(known)}", "engine.task")])

    def _refusals(self) -> Iterator[Conflict]:
        """Yields what vLLM, or our part of it, would find out half a minute later."""
        yield from wrong_build(self._spec.engine.device, for_cpus=current_platform.is_cpu())
        if needs_compiler(self._spec.engine):
            yield from missing_compiler()
        yield from option_refusals(self._spec.engine)
        spec = self._spec
        assert spec.model_dir is not None, "vLLM serves a prepared model"
        yield from directory_refusals(
            spec.engine,
            spec.kv_cache,
            spec.model_dir,
            spec.speculation,
            spec.draft_dir,
            hands_over=spec.role is not WorkerRole.AGGREGATED,
        )

    def _launch(self, scratch: Path, card_path: str) -> tuple[AsyncMPClient, Any]:
        assert self._spec.model_dir is not None
        args = engine_args(self._spec, events_endpoint(scratch), card_path)
        with asking_about_the_model(self._spec.model_dir):
            config = args.create_engine_config()
        set_scheduler(config, self._spec.speculation)
        config.logging_config = _telling_cause(config.logging_config, scratch)
        with executor_class(config) as executor, starting_in(self._process):
            return EngineCoreClient.make_async_mp_client(config, executor, log_stats=True), config

    async def add(self, request: EngineRequest) -> None:
        self._validate(request)
        core_request = to_core_request(request, self._adapters.named_by(request.adapter))
        params = core_request.sampling_params
        if params is not None and params.structured_outputs is not None:
            self._constrained.add(request.request_id)
        if request.kv_transfer_params:
            self._fetching.add(request.request_id)
        if self._own_metrics is not None:
            self._own_metrics.added(core_request)
        with _dead_is_an_error():
            await self._running().add_request_async(core_request)

    def _validate(self, request: EngineRequest) -> None:
        assert self._info is not None
        task = self._spec.engine.task
        if bool(request.pooling_params) != (task != "generate"):
            raise InvalidRequest(f"the request is not for a model that is to {task}")
        longest = self._info.max_model_len_tokens
        if len(request.prompt_token_ids) >= longest:
            raise InvalidRequest(
                f"the prompt has {len(request.prompt_token_ids)} tokens; the model's limit is {longest}, "
                "with at least one for the output"
            )
        try:
            check_params(request.kv_transfer_params, len(request.prompt_token_ids), request.adapter)
        except TransferError as error:
            raise InvalidRequest(error.message) from error

    async def load_adapter(self, digest: AdapterDigest, path: Path) -> None:
        """Goes on when the caller is cancelled: vLLM does, and what it holds must be known."""
        with _dead_is_an_error():
            await asyncio.shield(self._adapters.load(self._running(), digest, path))

    async def unload_adapter(self, digest: AdapterDigest, *, forget_blocks: bool = False) -> None:
        with _dead_is_an_error():
            await asyncio.shield(self._adapters.unload(self._running(), digest, forget_blocks=forget_blocks))

    async def abort(self, request_ids: Sequence[RequestId]) -> None:
        for request_id in request_ids:
            self._reports.pop(request_id, None)
            self._fetching.discard(request_id)
            self._constrained.discard(request_id)
        if self._own_metrics is not None:
            self._own_metrics.aborted(request_ids)
        try:
            await self._running().abort_requests_async(list(request_ids))
        except EngineDeadError:
            _log.debug("abort after the engine died: nothing runs any more")

    async def next_outputs(self) -> Sequence[EngineOutput]:
        while True:
            try:
                outputs = await self._running().get_output_async()
            except EngineDeadError as error:
                raise EngineDead("the vLLM engine died; see its log") from error
            if self._own_metrics is not None:
                self._own_metrics.record(outputs)
            rests = False
            if outputs.scheduler_stats is not None:
                self._record(outputs.scheduler_stats)
                rests = self._stats.became_idle
            if outputs.outputs or rests:
                return [self._output(output) for output in outputs.outputs]

    def _output(self, output: EngineCoreOutput) -> EngineOutput:
        """The first output of a request with a grammar is an error when the engine cannot compile the
        grammar, unless a failed transfer of KV may be the reason."""
        request_id, may_be_kv = output.request_id, self._spec.transfer.on_failure == "fail"
        is_ungrammatical = request_id in self._constrained and not may_be_kv
        self._constrained.discard(request_id)
        if output.finish_reason is not None:
            self._fetching.discard(request_id)
        speculation = self._stats.load().speculation
        return to_engine_output(
            output,
            self._reports.pop(request_id, None),
            ungrammatical=is_ungrammatical,
            switched_off=speculation is not None and speculation.switched_off,
        )

    def _record(self, stats: Any) -> None:
        assert self._kv_events is not None
        leases, reports = self._stats.record(stats)
        if leases:
            self._kv_events.put(KvEvents(leases=leases))
        # A pull may end after its request: nobody would take its report.
        self._reports.update({one: reports[one] for one in reports.keys() & self._fetching})

    async def next_kv_events(self) -> KvEvents:
        assert self._kv_events is not None
        return await self._kv_events.next()

    async def ping(self) -> None:
        """Goes through EngineCore's step loop and back. The worker processes are not asked, since each
        message to them lets them spin for a second: EngineCore waits for them in its steps, and whether one
        of them is stopped (SIGSTOP) can be seen from outside."""
        with _dead_is_an_error():
            await self._running().is_sleeping_async()
        while read_effort(self._children).stopped:  # noqa: ASYNC110 - the state of other processes
            await asyncio.sleep(_STOPPED_POLL_SECONDS)

    def processes(self) -> Collection[int]:
        """A worker starts no others."""
        return descendants(os.getpid())

    async def set_peers(self, peers: Sequence[KvPeer]) -> None:
        assert self._info is not None
        mine = self._info.handover_endpoints
        for rank, endpoint in enumerate(mine):
            addresses = [address for peer in peers for address in addresses_for(peer, rank, len(mine))]
            await set_peers(endpoint, addresses, _SIDE_CHANNEL_SECONDS, self._credentials)

    async def load(self) -> EngineLoad:
        """vLLM reports its load with its steps. The pairs are asked of the rank itself, since probes need no
        step."""
        assert self._info is not None
        if self._spec.role is not WorkerRole.PREFILL:
            with suppress(TransferError, DeadlineExceeded):  # the last answer stands
                endpoint = self._info.handover_endpoints[0]
                status = await query_status(endpoint, _SIDE_CHANNEL_SECONDS, self._credentials)
                self._stats.record_pairs(status.pairs)
        return self._stats.load()

    async def profile(self, seconds: float) -> Sequence[Path]:
        assert self._scratch is not None
        core, folder = self._running(), Path(self._scratch.name) / PROFILES
        for old in folder.glob("*"):  # of a caller that was cancelled
            old.unlink()
        with _dead_is_an_error():
            try:
                await core.profile_async(True, self._spec.worker_id)
                await asyncio.sleep(seconds)
            finally:
                await asyncio.shield(core.profile_async(False))
        return [await asyncio.to_thread(_compressed, file) for file in sorted(folder.iterdir())]

    async def aclose(self) -> None:
        if self._core is not None:
            core, self._core = self._core, None
            await asyncio.to_thread(core.shutdown, _SHUTDOWN_SECONDS)
        if self._kv_events is not None:
            self._kv_events.close()
            self._kv_events = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _running(self) -> AsyncMPClient:
        if self._core is None:
            raise EngineDead("the engine is not running")
        return self._core


@contextmanager
def _dead_is_an_error() -> Iterator[None]:
    try:
        yield
    except EngineDeadError as error:
        raise EngineDead("the vLLM engine is dead") from error


def _compressed(file: Path) -> Path:
    """Returns the file that takes its place."""
    small = file.with_name(f"{file.name}.gz")
    with file.open("rb") as data, gzip.open(small, "wb", compresslevel=1) as written:
        shutil.copyfileobj(data, written, 1 << 20)
    file.unlink()
    return small


def _telling_cause(logging_config: LoggingConfig, scratch: Path) -> LoggingConfig:
    """Lets a process of the engine write into scratch what ended its start."""
    file = logging_config.pylogging_config_file
    content = json.loads(Path(file).read_text()) if file else DEFAULT_LOGGING_CONFIG
    return replace(logging_config, pylogging_config_file=str(write_logging(scratch, content)))
