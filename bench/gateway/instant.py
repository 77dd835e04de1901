"""vLLM's OpenAI layer on an engine client that needs no engine: the process of floor.py.

`InstantClient` does what AsyncLLM does in its own process (add_request, generate and _run_output_handler of
vllm/v1/engine/async_llm.py), with the same objects. Where AsyncLLM waits for its engine core, tokens are at
hand: those of the simulated engine, for each running sequence one a step.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm import envs
from vllm.config import VllmConfig
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import serve_http
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.pooling_params import PoolingParams
from vllm.renderers import renderer_from_config
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from llmserve.apiserver.engine.engine_free import EngineFreeClient
from llmserve.apiserver.http.app import serving_args, vllm_config
from llmserve.apiserver.options import ModelDirectory
from llmserve.config.load import load_manifest
from llmserve.config.schema import SimSpec
from llmserve.core.errors import InvalidRequest
from llmserve.engines.sim.sequence import TokenSource

# What a prefill engine of a stock pair returns for its decode engine: vllm-router's PD mode passes it on.
_HANDED_OVER = {"do_remote_prefill": True, "remote_engine_id": "instant", "remote_block_ids": [0]}


@dataclass(slots=True)
class _Sequence:
    request_id: str
    source: TokenSource
    missing_tokens: int
    hands_over: bool

    def next_output(self) -> EngineCoreOutput:
        token = self.source.next_token()
        self.source.feed(token)
        self.missing_tokens -= 1
        is_last = not self.missing_tokens
        return EngineCoreOutput(
            request_id=self.request_id,
            new_token_ids=[token],
            finish_reason=FinishReason.LENGTH if is_last else None,
            kv_transfer_params=_HANDED_OVER if is_last and self.hands_over else None,
        )


_TASKS = ("generate",)


class InstantClient(EngineFreeClient):
    """Every answer has `max_tokens` tokens: nothing else ends one. `n` is 1."""

    def __init__(self, config: VllmConfig, sim: SimSpec) -> None:
        self.vllm_config, self.model_config = config, config.model_config
        self.renderer = renderer_from_config(config)
        self.input_processor = InputProcessor(config, self.renderer)
        self._processor = OutputProcessor(self.renderer.tokenizer, log_stats=False)
        self._vocab_size, self._step_seconds = sim.vocab_size, sim.decode_step_seconds
        self._running: dict[str, _Sequence] = {}
        self._steps: asyncio.Task[None] | None = None

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return _TASKS

    async def check_health(self) -> None:
        """It cannot fail."""

    def encode(
        self,
        prompt: Any,
        pooling_params: PoolingParams,
        request_id: str,
        lora_request: Any = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        tokenization_kwargs: dict[str, Any] | None = None,
        reasoning_ended: bool | None = None,
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        raise InvalidRequest("this engine generates, and does nothing else")

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        **options: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        request = self.input_processor.process_inputs(
            request_id, prompt, sampling_params, supported_tasks=_TASKS
        )
        self.input_processor.assign_request_id(request)
        queue = RequestOutputCollector(sampling_params.output_kind, request.request_id)
        self._processor.add_request(request, prompt_text, None, 0, queue)
        self._run(request)
        finished = False
        try:
            while not finished:
                output = queue.get_nowait() or await queue.get()
                finished = output.finished
                yield output
        finally:
            if not finished:
                await self.abort(request.request_id)

    def _run(self, request: EngineCoreRequest) -> None:
        params, name = request.sampling_params, request.request_id
        handed = (params.extra_args or {}).get("kv_transfer_params") or {}
        source = TokenSource(request.prompt_token_ids, self._vocab_size)
        hands_over = bool(handed.get("do_remote_decode"))
        self._running[name] = _Sequence(name, source, params.max_tokens, hands_over)
        if self._steps is None or self._steps.done():
            self._steps = asyncio.create_task(self._step_while_any(), name="steps")

    async def _step_while_any(self) -> None:
        """AsyncLLM's output handler, chunks included. Between two steps all others have their turn."""
        while self._running:
            await asyncio.sleep(self._step_seconds)
            outputs = [sequence.next_output() for sequence in self._running.values()]
            for start in range(0, len(outputs), envs.VLLM_V1_OUTPUT_PROC_CHUNK_SIZE):
                chunk = outputs[start : start + envs.VLLM_V1_OUTPUT_PROC_CHUNK_SIZE]
                self._processor.process_outputs(chunk)
                if chunk[-1] is not outputs[-1]:
                    await asyncio.sleep(0)
            for output in outputs:
                if output.finish_reason is not None:
                    self._running.pop(output.request_id, None)

    async def abort(self, request_id: str | Iterable[str]) -> None:
        names = [request_id] if isinstance(request_id, str) else list(request_id)
        for name in self._processor.abort_requests(names, internal=True):
            self._running.pop(name, None)

    def shutdown(self, timeout: float | None = None) -> None:
        self.renderer.shutdown()


async def serve(manifest_path: Path, model: Path, on_port: Callable[[int], None]) -> None:
    """Does what vLLM's build_and_serve does, but without a line of log for each request. Ends with SIGTERM.
    on_port: is called with the port before the first request is answered."""
    torch.set_num_threads(1)
    manifest = load_manifest(manifest_path)
    args = serving_args(ModelDirectory(manifest.model.served_name, model), manifest.engine, manifest.api)
    client = InstantClient(vllm_config(args), manifest.engine.sim)
    app = build_app(args, _TASKS, client.model_config)
    await init_app_state(client, app.state, args, _TASKS)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        port = listening.getsockname()[1]
        on_port(port)
        await serve_http(app, listening, port=port, access_log=False, log_level="warning")
