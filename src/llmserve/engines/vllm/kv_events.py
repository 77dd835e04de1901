"""Changes of vLLM's device cache, from its ZMQ event publisher.

We bind and the publisher connects, so no event can be published before we listen. The publisher
numbers its batches; a gap (its queue overflowed) makes what we know of the cache untrue, and is
reported as `cleared`: the directory then knows less than there is, which costs hits, never
correctness.

A model with several KV cache groups stores a block in each, under one hash, and a group with a window gives
its own back early. Only the blocks of one group are counted, which keeps all of a prompt.
"""

import asyncio
from typing import Any

import msgspec
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch
from zmq import SUB, SUBSCRIBE
from zmq.asyncio import Context

from llmserve.core.request import KvEvents


class KvEventSource:
    """`endpoint` is what vLLM's KVEventsConfig gets. Owned by the asyncio loop it is made in.

    It reads from the moment it is made: a SUB socket sends its subscription only while somebody
    reads, and what the publisher sends before that is lost.
    """

    def __init__(self) -> None:
        self._context = Context()
        self._socket = self._context.socket(SUB)
        self._socket.setsockopt(SUBSCRIBE, b"")
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._decoder = msgspec.msgpack.Decoder(KVEventBatch)
        self._next_sequence = 0
        self.counted_group = 0  # set before the first request
        self._events: asyncio.Queue[KvEvents] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read(), name="vllm-kv-events")

    async def _read(self) -> None:
        while True:
            _topic, sequence, payload = await self._socket.recv_multipart()
            batch = self._decoder.decode(payload)
            number = int.from_bytes(sequence, "big")
            gap = number != self._next_sequence
            self._next_sequence = number + 1
            self.put(fold(batch.events, self.counted_group, cleared=gap))

    def put(self, events: KvEvents) -> None:
        self._events.put_nowait(events)

    async def next(self) -> KvEvents:
        return await self._events.get()

    def close(self) -> None:
        self._reader.cancel()
        self._context.destroy(linger=0)


def fold(events: list[Any], counted_group: int, *, cleared: bool) -> KvEvents:
    """One batch in order, with blocks that came and went within it left out."""
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
    assert isinstance(block_hash, bytes), "vLLM must publish whole hashes, not their low 64 bits"
    return block_hash
