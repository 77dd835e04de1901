"""One end of a connection to the worker of a peer, and the bytes on their way over it."""

import ctypes
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmserve.transfer.base import Region, Spans
from llmserve.transfer.ucx import wire
from llmserve.transfer.ucx.library import Bytes, Endpoint, Request


class Memory:
    """Registered regions as arrays."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self.lengths = tuple(region.length_bytes for region in regions)
        self._views = [_view(region) for region in regions]

    def pieces(self, spans: Spans) -> list[Bytes]:
        """The bytes of the spans; the caller has checked their bounds."""
        columns = zip(spans.regions.tolist(), spans.offsets.tolist(), spans.lengths.tolist(), strict=True)
        return [self._views[region][offset : offset + length] for region, offset, length in columns]


def _view(region: Region) -> Bytes:
    array = (ctypes.c_ubyte * region.length_bytes).from_address(region.address)
    return np.frombuffer(memoryview(array), np.uint8)


@dataclass(slots=True)
class _Parcel:
    """A message, and for one that is received into a buffer of its own, where its bytes go then."""

    request: Request
    pieces: Sequence[Bytes] = ()


class Flow:
    """The messages of one part, in one direction. Their memory is in use until it is over."""

    def __init__(self, parcels: Sequence[_Parcel]) -> None:
        self.failure = ""
        self._parcels = deque(parcels)

    def over(self) -> bool:
        """Takes note of what has arrived since the last call."""
        while self._parcels and self._parcels[0].request.over:
            parcel = self._parcels.popleft()
            self.failure = self.failure or parcel.request.failure
            if parcel.pieces and not self.failure:
                _scatter(parcel.request.buffer, parcel.pieces)
        return not self._parcels


class Link:
    """Nothing here raises: what cannot be sent or received is a flow that has failed."""

    def __init__(self, number: int, endpoint: Endpoint, peer_number: int = 0) -> None:
        self.number = number
        self.peer_number = peer_number
        self._endpoint = endpoint
        self._outbox: deque[Request] = deque()  # keeps the buffers until they are sent

    @property
    def alive(self) -> bool:
        return self._endpoint.alive

    @property
    def quiet(self) -> bool:
        """No message of control is on its way any more."""
        while self._outbox and self._outbox[0].over:
            self._outbox.popleft()
        return not self._outbox

    def tell(self, kind: wire.Kind, part: int = 0, body: bytes = b"") -> None:
        message = wire.Message(kind, self.peer_number, part, body)
        self._outbox.append(self._endpoint.send(message.pack(), wire.CONTROL_TAG))

    def send(self, part: int, pieces: Sequence[Bytes]) -> Flow:
        tag = wire.data_tag(self.peer_number, part)
        messages = [pieces[group] for group in wire.packed([len(piece) for piece in pieces])]
        buffers = (group[0] if len(group) == 1 else np.concatenate(group) for group in messages)
        return Flow([_Parcel(self._endpoint.send(buffer, tag)) for buffer in buffers])

    def receive(self, part: int, pieces: Sequence[Bytes]) -> Flow:
        tag = wire.data_tag(self.number, part)
        parcels = []
        for group in wire.packed([len(piece) for piece in pieces]):
            shared = pieces[group]
            if len(shared) == 1:
                parcels.append(_Parcel(self._endpoint.receive(shared[0], tag)))
            else:
                buffer = np.empty(sum(map(len, shared)), np.uint8)
                parcels.append(_Parcel(self._endpoint.receive(buffer, tag), shared))
        return Flow(parcels)

    def close(self) -> None:
        """What is on its way ends soon, not at once. Idempotent."""
        self._endpoint.close()


def _scatter(buffer: Bytes, pieces: Sequence[Bytes]) -> None:
    offset = 0
    for piece in pieces:
        piece[:] = buffer[offset : offset + len(piece)]
        offset += len(piece)
