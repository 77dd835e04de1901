"""Questions to a hand-over server from a process that moves no KV: a worker's front. asyncio only."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from llmserve.core.errors import DeadlineExceeded, TransferError
from llmserve.core.fields import split_endpoint
from llmserve.core.kv_params import PeerAddress, PullParams
from llmserve.core.lease_table import LeaseAnswer
from llmserve.engines.kv_transfer import wire
from llmserve.engines.kv_transfer.status import HandoverStatus

_UNKNOWN_RETRY_SECONDS = 0.02


async def release_ticket(pull_params: PullParams, timeout: float) -> bool:
    """Gives back the blocks of a hand-over that will not happen, on every rank. False: some lease
    had ended before. A lease that its owner has not granted yet is waited for.
    Errors: TransferError, DeadlineExceeded (seconds)."""
    async with _deadline(timeout, "release"):
        answers = await asyncio.gather(
            *(_release(endpoint, pull_params) for endpoint in pull_params.endpoints)
        )
    return all(answer is LeaseAnswer.VALID for answer in answers)


async def query_status(endpoint: str, timeout: float) -> HandoverStatus:
    """Errors: TransferError, DeadlineExceeded."""
    async with _deadline(timeout, "status"), _connection(endpoint) as (reader, writer):
        return HandoverStatus.from_message(wire.check_answer(await _ask(reader, writer, {"op": "status"})))


async def set_peers(endpoint: str, addresses: Sequence[PeerAddress], timeout: float) -> None:
    """Tells this worker's own rank whom it may fetch from; replaces what it was told before.
    Errors: TransferError, DeadlineExceeded."""
    async with _deadline(timeout, "set_peers"), _connection(endpoint) as (reader, writer):
        wire.check_answer(await _ask(reader, writer, {"op": "set_peers", **wire.pack_addresses(addresses)}))


async def _release(endpoint: str, pull_params: PullParams) -> LeaseAnswer:
    message = {"op": "release", "lease_id": pull_params.lease_id, "epoch": pull_params.epoch}
    async with _connection(endpoint) as (reader, writer):
        while True:
            answer = wire.lease_answer(await _ask(reader, writer, message))
            if answer is not LeaseAnswer.UNKNOWN:
                return answer
            await asyncio.sleep(_UNKNOWN_RETRY_SECONDS)


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: wire.Message
) -> wire.Message:
    try:
        writer.write(wire.pack(message))
        return await wire.read_message(reader)
    except OSError as error:
        raise TransferError(f"side channel: {error!r}") from error


@asynccontextmanager
async def _connection(endpoint: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = split_endpoint(endpoint)
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        raise TransferError(f"cannot connect to {endpoint}: {error}") from error
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def _deadline(timeout: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"side channel: no answer to {what} within {timeout:g} s") from error
