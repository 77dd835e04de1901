"""Changes of vLLM's device cache, from its ZMQ event publisher.

vLLM binds a socket in the engine's own directory (mode 0700), so that only its user can be its publisher
or listen to it. We connect when the engine is there, before its first request. The publisher numbers its
batches. A gap (its queue overflowed) or a batch that cannot be read makes what we know of the cache untrue,
and is reported as `cleared`: the directory then knows less than there is, which costs hits, never
correctness.

A model with several KV cache groups stores a block in each, under one hash, and a group with a window gives
its own back early. Only the blocks of one group are counted, which keeps all of a prompt.
"""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch
from zmq import SUB, SUBSCRIBE
from zmq.asyncio import Context

from llmserve.core.logs import ScarceWarnings
from llmserve.core.request import KvEvents

_log = logging.getLogger(__name__)
_decoder = msgspec.msgpack.Decoder(KVEventBatch)


def events_endpoint(scratch: Path) -> str:
    """Returns what vLLM's KVEventsConfig gets. scratch: a directory that no other user can enter."""
    return f"ipc://{scratch}/kv-events"


class KvEventSource:
    """Owned by the asyncio loop it is made in. It reads from the moment it is made: a SUB socket sends its
    subscription only while somebody reads, and what the publisher sends before that is lost."""

    def __init__(self, endpoint: str) -> None:
        self._context = Context()
        self._socket = self._context.socket(SUB)
        self._socket.setsockopt(SUBSCRIBE, b"")
        self._socket.connect(endpoint)
        self._warnings = ScarceWarnings(_log)
        self._next_sequence = 0
        self.counted_group = 0  # set before the first request
        self._events: asyncio.Queue[KvEvents] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read(), name="vllm-kv-events")

    async def _read(self) -> None:
        while True:
            self.put(self._events_of(await self._socket.recv_multipart()))

    def _events_of(self, message: Sequence[bytes]) -> KvEvents:
        expected, self._next_sequence = self._next_sequence, self._next_sequence + 1
        try:
            number, events = _decode(message)
            self._next_sequence = number + 1
            return fold(events, self.counted_group, cleared=number != expected)
        except (ValueError, RecursionError) as error:
            self._warnings.warning(
                "events of vLLM's cache cannot be read, its blocks are forgotten: %s", error
            )
            return KvEvents(cleared=True)

    def put(self, events: KvEvents) -> None:
        self._events.put_nowait(events)

    async def next(self) -> KvEvents:
        return await self._events.get()

    def close(self) -> None:
        self._reader.cancel()
        self._context.destroy(linger=0)


def _decode(message: Sequence[bytes]) -> tuple[int, list[Any]]:
    """Returns the number of a batch and its events. Errors: ValueError for anything else."""
    _topic, sequence, payload = message
    return int.from_bytes(sequence, "big"), _decoder.decode(payload).events


def fold(events: list[Any], counted_group: int, *, cleared: bool) -> KvEvents:
    """Returns one batch in order, with blocks that came and went within it left out. Errors: ValueError."""
    stored: dict[bytes, None] = {}
    removed: dict[bytes, None] = {}
    for event in events:
        if getattr(event, "group_idx", None) not in (None, counted_group):
            continue
        match event:
            case BlockStored():
                stored.update(dict.fromkeys(map(_as_bytes, event.block_hashes)))
            case BlockRemoved():
                for block_hash in map(_as_bytes, event.block_hashes):
                    stored.pop(block_hash, None)
                    removed[block_hash] = None
            case AllBlocksCleared():
                cleared = True
                stored.clear()
                removed.clear()
    return KvEvents(stored=tuple(stored), removed=tuple(removed), cleared=cleared)


def _as_bytes(block_hash: bytes | int) -> bytes:
    if not isinstance(block_hash, bytes):
        raise ValueError("vLLM must publish whole hashes, not their low 64 bits")
    return block_hash
