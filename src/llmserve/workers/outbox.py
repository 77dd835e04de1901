"""What a session has to send. While the stream is slow, all that is pending merges into one message:
at most one delta a request, so that the memory it takes is bounded by the requests of the session.
"""

import asyncio

from llmserve.core.ids import RequestId
from llmserve.core.request import EngineOutput, Logprobs


class Outbox:
    """One producer side (put, close), one consumer (take)."""

    def __init__(self) -> None:
        self._pending: dict[RequestId, list[EngineOutput]] = {}
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, output: EngineOutput) -> None:
        """Never waits. Ignored after close."""
        if self._closed:
            return
        waiting = self._pending.setdefault(output.request_id, [])
        if waiting and can_merge(waiting[-1], output):
            waiting[-1] = merge(waiting[-1], output)
        else:
            waiting.append(output)
        self._ready.set()

    def drop(self, request_id: RequestId) -> list[EngineOutput]:
        """Takes back what is pending for a request that was aborted."""
        return self._pending.pop(request_id, [])

    def close(self) -> None:
        """What is pending is still taken. Idempotent."""
        self._closed = True
        self._ready.set()

    async def take(self) -> list[EngineOutput]:
        """Waits for something to send; in order for each request. Empty: the outbox was closed."""
        while not self._pending and not self._closed:
            self._ready.clear()
            await self._ready.wait()
        pending, self._pending = self._pending, {}
        return [output for outputs in pending.values() for output in outputs]


def can_merge(first: EngineOutput, second: EngineOutput) -> bool:
    return (
        first.finish_reason is None
        and second.prompt_logprobs is None
        and _width(first.logprobs) == _width(second.logprobs)
    )


def _width(logprobs: Logprobs | None) -> int:
    return 0 if logprobs is None else logprobs.width


def merge(first: EngineOutput, second: EngineOutput) -> EngineOutput:
    """Two outputs of one request as one. They can_merge."""
    return EngineOutput(
        request_id=first.request_id,
        token_ids=(*first.token_ids, *second.token_ids),
        finish_reason=second.finish_reason,
        stop_reason=second.stop_reason,
        logprobs=_joined(first.logprobs, second.logprobs),
        prompt_logprobs=first.prompt_logprobs,
        kv_transfer_params=second.kv_transfer_params,
        prefill_stats=first.prefill_stats or second.prefill_stats,
        error=second.error,
        handover=first.handover or second.handover,
    )


def _joined(first: Logprobs | None, second: Logprobs | None) -> Logprobs | None:
    if first is None or second is None:
        return first or second
    return Logprobs(
        width=first.width,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
        ranks=first.ranks + second.ranks,
    )
