"""Requests to a hand-over server from a process that moves no KV: a worker's front. asyncio only."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from llmserve.core.errors import DeadlineExceeded, TransferError
from llmserve.core.kv_params import PeerAddress, PullParams
from llmserve.core.lease_table import LeaseAnswer
from llmserve.engines.kv_transfer.channel import Channel, open_client
from llmserve.engines.kv_transfer.protocol import (
    A,
    AskStatus,
    Done,
    HandoverStatus,
    LeaseIs,
    ReleaseLease,
    Request,
    SetPeers,
    decode_answer,
    expect,
)

_UNKNOWN_RETRY_SECONDS = 0.02


async def release_lease(params: PullParams, timeout: float) -> bool:
    """Gives back the blocks of a hand-over that will not happen, on every rank. False: some lease had ended
    before. A lease that its owner has not granted yet is waited for.
    Errors: TransferError, DeadlineExceeded (seconds)."""
    async with _deadline(timeout, "release"):
        answers = await asyncio.gather(*(_release(endpoint, params) for endpoint in params.endpoints))
    return all(answer is LeaseAnswer.VALID for answer in answers)


async def query_status(endpoint: str, timeout: float) -> HandoverStatus:
    """Errors: TransferError, DeadlineExceeded."""
    async with _deadline(timeout, "status"), _connection(endpoint) as channel:
        return await _ask(channel, AskStatus(), HandoverStatus)


async def set_peers(endpoint: str, addresses: Sequence[PeerAddress], timeout: float) -> None:
    """Names to this worker's own rank the peers it may fetch from; replaces those named before.
    Errors: TransferError, DeadlineExceeded."""
    async with _deadline(timeout, "set_peers"), _connection(endpoint) as channel:
        await _ask(channel, SetPeers(tuple(addresses)), Done)


async def _release(endpoint: str, params: PullParams) -> LeaseAnswer:
    message = ReleaseLease(params.lease_id, params.epoch)
    async with _connection(endpoint) as channel:
        while True:
            answer = (await _ask(channel, message, LeaseIs)).lease
            if answer is not LeaseAnswer.UNKNOWN:
                return answer
            await asyncio.sleep(_UNKNOWN_RETRY_SECONDS)


async def _ask(channel: Channel, request: Request, kind: type[A]) -> A:
    try:
        channel.send(request)
        return expect(decode_answer(await channel.receive()), kind)
    except OSError as error:
        raise TransferError(f"side channel: {error!r}") from error


@asynccontextmanager
async def _connection(endpoint: str) -> AsyncIterator[Channel]:
    channel = await open_client(endpoint)
    try:
        yield channel
    finally:
        await channel.aclose()


@asynccontextmanager
async def _deadline(timeout: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"side channel: no answer to {what} within {timeout:g} s") from error
