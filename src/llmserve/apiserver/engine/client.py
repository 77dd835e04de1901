"""vLLM's EngineClient, with a cluster behind it instead of an engine.

What vLLM's serving layer sees is AsyncLLM's behaviour (vllm/v1/engine/async_llm.py: add_request,
generate, abort): inputs are processed, sequences fanned out and outputs detokenized by the same
objects. Only where AsyncLLM hands a sequence to its engine core, a RequestRun takes it.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.pooling_params import PoolingParams
from vllm.renderers import BaseRenderer
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.engine.parallel_sampling import ParentRequest

from llmserve.apiserver.adapters.names import AdapterNames, AdapterRequest
from llmserve.apiserver.adapters.version import RequestVersion
from llmserve.apiserver.engine.asked import Asked, sequences_of
from llmserve.apiserver.engine.engine_free import EngineFreeClient
from llmserve.apiserver.engine.output import OutputSink
from llmserve.apiserver.engine.pooling import PoolingLegs
from llmserve.apiserver.engine.sampling import PromptLegs, SamplingLegs
from llmserve.apiserver.engine.thinking import ThinkingBudgets
from llmserve.apiserver.engine.validation import (
    check_priority,
    check_sendable,
    check_supported,
)
from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.apiserver.grammars.check import GrammarCheck
from llmserve.apiserver.grammars.process import SharedCompiler
from llmserve.apiserver.http.errors import as_serving_error
from llmserve.apiserver.http.headers import check_request_id
from llmserve.apiserver.http.health import Readiness
from llmserve.apiserver.http.scope import RequestScope, current_scope
from llmserve.apiserver.request.context import Legs, RequestInfo, RunContext
from llmserve.apiserver.request.placement import ChoiceGroup
from llmserve.apiserver.request.rules import StageLimits
from llmserve.apiserver.request.run import RequestRun
from llmserve.core.adapters import NamedAdapter
from llmserve.core.errors import LLMServeError, Unavailable
from llmserve.core.ids import AdapterDigest, RequestId
from llmserve.core.tasks import TaskOwner

_MAX_ERROR_LENGTH = 2000  # of what is remembered: vLLM's messages repeat the values that are wrong
GENERATE = "generate"


class ClusterEngineClient(EngineFreeClient):
    def __init__(
        self,
        vllm_config: VllmConfig,
        renderer: BaseRenderer[Any],
        context: RunContext,
        readiness: Readiness,
        adapters: AdapterNames,
        compiler: SharedCompiler,
        task: str = GENERATE,
    ) -> None:
        """task: what the model does, as `engine.task`."""
        self.tasks = (task,)
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.renderer = renderer
        self.input_processor = InputProcessor(vllm_config, self.renderer)
        # Outputs that are pooled come once; vLLM knows no interval for them.
        interval = vllm_config.scheduler_config.stream_interval if task == GENERATE else 1
        self._processor = OutputProcessor(self.renderer.tokenizer, log_stats=False, stream_interval=interval)
        self._context, self._readiness, self._adapters = context, readiness, adapters
        self._grammars = GrammarCheck(vllm_config, compiler)
        self._thinking = ThinkingBudgets()
        self._owner = TaskOwner("requests")
        self._runs: dict[str, _RunningSequence] = {}

    async def start_compiler(self) -> None:
        """Starts what compiles grammars, so that the first one does not wait for it."""
        await self._grammars.start()

    def set_stream_interval(self, tokens: int) -> None:
        """Lets events of streams that begin from now on carry at least this many tokens. Pooled outputs have
        no events."""
        if self.tasks != (GENERATE,):
            return
        self._processor.stream_interval = tokens

    def set_limits(self, limits: StageLimits) -> None:
        """Sets the deadlines of requests that begin from now on."""
        self._context = replace(self._context, limits=limits)

    def set_thinking_budgets(self, budgets: ThinkingBudgets) -> None:
        """Sets how long requests with an effort may think."""
        self._thinking = budgets

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return self.tasks

    async def check_health(self) -> None:
        if reason := self._readiness.missing():
            raise Unavailable(reason)

    def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        lora_request: AdapterRequest | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
        session_id: str | None = None,
        kv_hints: Any = None,
        reasoning_ended: bool | None = None,
        reasoning_parser_kwargs: dict[str, Any] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Returns the outputs of a request, of all its choices. Errors of these: as of `_outputs`."""
        self._thinking.limit(sampling_params, reasoning_parser_kwargs)
        asked = Asked(request_id, prompt, sampling_params, prompt_text, lora_request, priority)
        return self._outputs(asked, tokenization_kwargs)

    def encode(
        self,
        prompt: Any,
        pooling_params: PoolingParams,
        request_id: str,
        lora_request: AdapterRequest | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        tokenization_kwargs: dict[str, Any] | None = None,
        reasoning_ended: bool | None = None,
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        """Returns the one output of a request for a pooled output. Errors of it: as of `_outputs`."""
        asked = Asked(request_id, prompt, pooling_params, None, lora_request, priority)
        return self._outputs(asked, tokenization_kwargs)

    async def _outputs(
        self, asked: Asked, tokenization_kwargs: dict[str, Any] | None
    ) -> AsyncGenerator[Any, None]:
        """Errors: vLLM's, so that its layer answers with the right status; one that comes before any output
        is also left in the RequestScope."""
        scope = current_scope()
        queue: RequestOutputCollector | None = None
        any_output = False
        try:
            check_request_id(asked.request_id)
            scope.explain.known_as(asked.request_id)
            if isinstance(asked.params, SamplingParams):
                await self._grammars.check(asked.params, scope.tenant)
                check_supported(asked.params)
            request = await self._process(asked, tokenization_kwargs)
            request.lora_request = asked.adapter  # not earlier: this process has no settings of LoRA
            scope.reached_engine = True
            queue = self._start(request, asked.text(self.model_config))
            finished = False
            while not finished:
                output = queue.get_nowait() or await queue.get()
                finished = output.finished
                any_output = True
                yield output
        except Exception as error:
            serving_error = as_serving_error(error, before_engine=not scope.reached_engine)
            scope.explain.record.error = str(error)[:_MAX_ERROR_LENGTH]
            if not any_output and scope.early_error is None:
                scope.early_error = serving_error
            raise serving_error from error
        finally:
            if queue is not None:
                self._abort([queue.request_id], internal=True)

    async def _process(self, asked: Asked, tokenization_kwargs: dict[str, Any] | None) -> EngineCoreRequest:
        """Errors: vLLM's validation errors."""
        # Rendered inputs need no tokenizing; raw ones do, which must not block the loop.
        rendered = isinstance(asked.prompt, dict) and "type" in asked.prompt
        options = {
            "supported_tasks": self.tasks,
            "tokenization_kwargs": tokenization_kwargs,
            "priority": asked.priority,
        }
        inputs = (asked.request_id, asked.prompt, asked.params)
        if rendered:
            request = self.input_processor.process_inputs(*inputs, **options)
        else:
            request = await self.input_processor.process_inputs_async(*inputs, **options)
        if request.mm_features or request.prompt_embeds is not None or not request.prompt_token_ids:
            raise VLLMValidationError("only text prompts are available")
        check_sendable(request.params, request.priority)
        check_priority(request.priority, current_scope().caller.max_priority)
        self.input_processor.assign_request_id(request)
        return request

    def _start(self, request: EngineCoreRequest, prompt_text: str | None) -> RequestOutputCollector:
        queue = RequestOutputCollector(request.params.output_kind, request.request_id)
        several = request.sampling_params is not None and request.sampling_params.n > 1
        parent = ParentRequest(request) if several else None
        sequences = list(sequences_of(request, parent))
        infos = [self._info(sequence) for sequence in sequences]
        choices = self._choices(request, infos) if parent else None
        for index, (sequence, info) in enumerate(zip(sequences, infos, strict=True)):
            self._processor.add_request(sequence, prompt_text, parent, index, queue)
            self._run(sequence, info, queue, choices)
        return queue

    def _info(self, request: EngineCoreRequest) -> RequestInfo:
        name, scope, lora = request.request_id, current_scope(), request.lora_request
        adapter = lora.adapter if lora else None
        return RequestInfo(
            RequestId(name),
            scope.tenant,
            request.cache_salt or "",
            scope.explain.sequence(name, adapter),
            scope.span,
            self._version(scope, adapter) if adapter else RequestVersion(),
            scope.waited_seconds,
            scope.caller.background,
            scope.caller.limits,
        )

    def _version(self, scope: RequestScope, adapter: NamedAdapter) -> RequestVersion:
        """Returns what all sequences of the HTTP request share."""

        def present() -> AdapterDigest | None:
            meant = self._adapters.meaning(adapter.name)
            return meant.digest if meant else None

        if scope.version is None:
            scope.version = RequestVersion(adapter.digest, present)
        return scope.version

    def _choices(self, request: EngineCoreRequest, infos: Sequence[RequestInfo]) -> ChoiceGroup:
        """The info of all choices is without a record, which each has of its own."""
        info = replace(infos[0], request_id=RequestId(request.request_id), record=SequenceRecord())
        legs = self._sampling_legs(request)
        handovers = current_scope().handovers
        return ChoiceGroup(info, infos, legs, PromptLegs(legs), self._context, handovers)

    def _legs(self, request: EngineCoreRequest) -> Legs:
        if request.pooling_params is not None:
            return PoolingLegs(request.prompt_token_ids, request.pooling_params, request.priority)
        return self._sampling_legs(request)

    def _sampling_legs(self, request: EngineCoreRequest) -> SamplingLegs:
        longest = self.model_config.max_model_len
        return SamplingLegs(request.prompt_token_ids, request.sampling_params, longest, request.priority)

    def _run(
        self,
        request: EngineCoreRequest,
        info: RequestInfo,
        queue: RequestOutputCollector,
        choices: ChoiceGroup | None,
    ) -> None:
        name, scope = request.request_id, current_scope()
        sink = OutputSink(request, self._processor, queue, scope.handovers)
        run = RequestRun(info, self._legs(request), sink, self._context, choices)
        task = self._owner.spawn(name, run.run())
        self._runs[name] = _RunningSequence(run, sink, task)
        task.add_done_callback(lambda _: self._runs.pop(name, None))
        task.add_done_callback(lambda _: scope.explain.part_ended())

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Ends requests, whose clients get the tokens so far."""
        for one in self._runs.values():
            one.sink.flush()
        self._abort([request_id] if isinstance(request_id, str) else list(request_id), internal=False)

    def _abort(self, request_ids: list[str], internal: bool) -> None:
        """Ends what still runs of them; finished and unknown ones are ignored."""
        for name in self._processor.abort_requests(request_ids, internal):
            if name in self._runs:
                self._runs[name].task.cancel()

    def __len__(self) -> int:
        return len(self._runs)

    def shutdown(self, timeout: float | None = None) -> None:
        self.renderer.shutdown()

    async def drain(self, timeout_seconds: float, why: LLMServeError) -> None:
        """Waits for the running requests, then ends those that are left with `why`. Idempotent."""
        running = list(self._runs.values())
        if running:
            await asyncio.wait([one.task for one in running], timeout=timeout_seconds)
        for one in self._runs.values():
            one.run.give_up(why)
        await self._owner.aclose()
        await self._grammars.aclose()


class _RunningSequence(NamedTuple):
    run: RequestRun
    sink: OutputSink
    task: asyncio.Task[None]
