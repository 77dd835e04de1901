"""A pair of engines that hand KV over, as the engine suites drive them."""

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.ids import AdapterDigest, RequestId, TransferId, WorkerId
from llmserve.core.kv_params import PushParams, prefill_params
from llmserve.core.request import EngineOutput, EngineRequest, FinishReason, LeaseState, SamplingLimits
from llmserve.engines.base import Engine, EngineInfo
from llmserve.engines.kv_transfer import query_status

HAND_OVER = {"do_remote_decode": True}
SALT = "0123456789abcdef0123456789abcdef"

numbers = itertools.count(1)  # no two requests, prompts or epochs of a test run share one


@dataclass(repr=False)
class Harness:
    """One started engine, with the single consumers of its outputs and KV events. settle_seconds: how soon
    after a test it must be empty."""

    engine: Engine
    info: EngineInfo
    settle_seconds: float
    outputs: dict[str, list[EngineOutput]] = field(default_factory=dict)
    resident: set[bytes] = field(default_factory=set)
    leases: list[LeaseState] = field(default_factory=list)
    held_at_rest: list[int] = field(default_factory=list)  # blocks, each time that it said that nothing runs
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    async def open(cls, engine: Engine, settle_seconds: float) -> "Harness":
        harness = cls(engine, await engine.start(), settle_seconds)
        harness.tasks = [
            asyncio.ensure_future(harness._collect()),
            asyncio.ensure_future(harness._follow()),
        ]
        return harness

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.engine.aclose()

    async def _collect(self) -> None:
        while True:
            outputs = await self.engine.next_outputs()
            if not outputs:
                self.held_at_rest.append((await self.engine.load()).used_blocks)
            for output in outputs:
                self.outputs.setdefault(output.request_id, []).append(output)
            self.changed.set()

    async def _follow(self) -> None:
        while True:
            events = await self.engine.next_kv_events()
            if events.cleared:
                self.resident.clear()
            self.resident.difference_update(events.removed)
            self.resident.update(events.stored)
            self.leases.extend(change.state for change in events.leases)
            self.changed.set()

    async def add(
        self,
        prompt: Sequence[int],
        max_tokens: int = 8,
        kv: Mapping[str, Any] | None = None,
        salt: str = SALT,
        adapter: AdapterDigest = BASE_MODEL,
        sampling_params: bytes = b"",
        **limits: Any,
    ) -> str:
        request_id = RequestId(f"r{next(numbers)}")
        sampling = SamplingLimits(max_tokens, **limits)
        await self.engine.add(
            EngineRequest(
                request_id, prompt, sampling, sampling_params, salt, adapter=adapter, kv_transfer_params=kv
            )
        )
        return request_id

    async def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def result(self, request_id: str) -> list[EngineOutput]:
        await self.until(lambda: finished(self.outputs.get(request_id, ())))
        return self.outputs[request_id]

    async def run(self, prompt: Sequence[int], max_tokens: int = 8, **more: Any) -> list[EngineOutput]:
        return await self.result(await self.add(prompt, max_tokens, **more))

    async def twice(self, prompt: Sequence[int], max_tokens: int) -> tuple[list[int], list[int]]:
        """What it says of a prompt that it computes whole, and then with the prompt's blocks in its cache.
        These may differ: fewer tokens are computed at once, and kernels round otherwise."""
        whole = tokens(await self.run(prompt, max_tokens))
        return whole, tokens(await self.run(prompt, max_tokens))

    async def first_token(self, request_id: str) -> None:
        await self.until(lambda: bool(tokens(self.outputs.get(request_id, ()))))

    async def abort(self, request_id: str) -> None:
        await self.engine.abort([RequestId(request_id)])

    async def empty(self) -> None:
        """Waits until nothing runs and no block is held, for itself or for others."""
        async with asyncio.timeout(self.settle_seconds):
            while (busy := await self._busy()) != (0, 0, 0, 0, 0):  # noqa: ASYNC110 - a remote state
                await asyncio.sleep(0.01)
        assert busy == (0, 0, 0, 0, 0)

    async def _busy(self) -> tuple[int, ...]:
        load = await self.engine.load()
        return (
            load.running_requests,
            load.waiting_requests,
            load.used_blocks,
            load.leased_blocks,
            load.orphan_blocks,
        )


@dataclass(frozen=True)
class Pair:
    prefill: Harness
    decode: Harness

    async def ticket(self, prompt: Sequence[int]) -> dict[str, Any]:
        (output,) = await self.prefill.run(prompt, 1, kv=HAND_OVER)
        assert output.kv_transfer_params is not None
        return dict(output.kv_transfer_params)

    async def handed_over(self, prompt: Sequence[int], max_tokens: int) -> list[EngineOutput]:
        """Decode draws the first token again."""
        return await self.decode.run(prompt, max_tokens, kv=await self.ticket(prompt))

    async def continued(
        self, prompt: Sequence[int], max_tokens: int, **more: Any
    ) -> tuple[list[int], list[EngineOutput]]:
        """Decode goes on from the token that prefill drew: that token, and decode's outputs. more: of both
        legs."""
        (output,) = await self.prefill.run(prompt, 1, kv=HAND_OVER, **more)
        first, params = list(output.token_ids), output.kv_transfer_params
        return first, await self.decode.run([*prompt, *first], max_tokens - 1, kv=params, **more)


@dataclass(frozen=True)
class Push:
    """A request that is being pushed: decode has it first."""

    pair: Pair
    prompt: Sequence[int]
    transfer_id: TransferId
    more: Mapping[str, Any]  # of both legs
    decode_id: str

    @classmethod
    async def start(
        cls,
        pair: Pair,
        prompt: Sequence[int],
        max_tokens: int,
        *,
        continues: bool = True,
        transfer_id: TransferId | None = None,
        **more: Any,
    ) -> "Push":
        transfer_id = transfer_id or TransferId(f"push-{next(numbers)}")
        endpoints = pair.prefill.info.handover_endpoints
        status = await query_status(endpoints[0], 5.0)
        worker = WorkerId(status.worker_id)
        card = PushParams(transfer_id, worker, status.epoch, endpoints, len(prompt), continues)
        decode_id = await pair.decode.add(prompt, max_tokens, kv=card.to_params(), **more)
        return cls(pair, prompt, transfer_id, more, decode_id)

    async def prefill(self, **limits: Any) -> str:
        params = prefill_params(self.transfer_id)
        return await self.pair.prefill.add(self.prompt, 1, kv=params, **self.more, **limits)

    async def finish(self) -> tuple[list[int], list[EngineOutput]]:
        """As Pair.continued: prefill's token, and decode's outputs."""
        (output,) = await self.pair.prefill.result(await self.prefill())
        return list(output.token_ids), await self.output()

    async def output(self) -> list[EngineOutput]:
        return await self.pair.decode.result(self.decode_id)


def finished(outputs: Sequence[EngineOutput]) -> bool:
    return bool(outputs) and outputs[-1].finish_reason is not None


def tokens(outputs: Sequence[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def ended(outputs: Sequence[EngineOutput]) -> FinishReason | None:
    return outputs[-1].finish_reason
