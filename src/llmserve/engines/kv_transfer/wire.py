"""Messages of the side channel: a big-endian length and a JSON object, answered in order.

A request has "op"; an answer has "ok", and "error" when that is false. Lease operations answer with
"lease", a LeaseAnswer. Descriptions of transports travel in base64.
"""

import asyncio
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmserve.core.errors import TransferError
from llmserve.core.fields import split_endpoint
from llmserve.core.ids import WorkerId
from llmserve.core.kv_params import PeerAddress
from llmserve.core.lease_table import LeaseAnswer
from llmserve.transfer.base import Spans

MAX_MESSAGE_BYTES = 4 << 20
_LENGTH = struct.Struct("!I")

Message = dict[str, Any]


def pack(message: Message) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


async def read_message(reader: asyncio.StreamReader) -> Message:
    """Errors: TransferError for what is no message; ConnectionError at the end of the stream."""
    try:
        (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if size > MAX_MESSAGE_BYTES:
            raise TransferError(f"side channel: a message of {size} bytes is too long")
        body = await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError("side channel closed by the peer") from error
    return _parse(body)


def _parse(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except ValueError as error:
        raise TransferError("side channel: not JSON") from error
    except RecursionError as error:
        raise TransferError("side channel: nested too deep") from error
    if not isinstance(message, dict):
        raise TransferError("side channel: not an object")
    return message


def check_answer(answer: Message) -> Message:
    """Errors: TransferError with the peer's reason."""
    if answer.get("ok") is not True:
        raise TransferError(f"refused by the peer: {str(answer.get('error', 'no reason given'))[:500]}")
    return answer


def lease_answer(answer: Message) -> LeaseAnswer:
    try:
        return LeaseAnswer(check_answer(answer)["lease"])
    except (KeyError, ValueError) as error:
        raise TransferError("side channel: malformed answer about a lease") from error


def pack_addresses(addresses: Sequence[PeerAddress]) -> Message:
    return {"peers": [[one.worker_id, one.epoch, one.endpoint] for one in addresses]}


def unpack_addresses(message: Message) -> list[PeerAddress]:
    try:
        rows = [(str(worker), int(epoch), str(endpoint)) for worker, epoch, endpoint in message["peers"]]
    except (KeyError, TypeError, ValueError) as error:
        raise TransferError("side channel: malformed peers") from error
    for _, _, endpoint in rows:
        split_endpoint(endpoint)
    return [PeerAddress(WorkerId(worker), epoch, endpoint) for worker, epoch, endpoint in rows]


def pack_spans(spans: Spans) -> Message:
    return {"spans": [spans.regions.tolist(), spans.offsets.tolist(), spans.lengths.tolist()]}


def unpack_spans(message: Message) -> Spans:
    """Not yet checked against any memory."""
    try:
        regions, offsets, lengths = (np.asarray(column, np.int64) for column in message["spans"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise TransferError("side channel: malformed spans") from error
    return Spans(regions, offsets, lengths)
