"""One end of a connection to the worker of a peer, and the bytes in flight over it."""

import ctypes
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmserve.transfer.base import Region, Spans
from llmserve.transfer.ucx import wire
from llmserve.transfer.ucx.library import Bytes, UcxEndpoint, UcxRequest

_LEAVE_SECONDS = 0.5
_SENDING_SECONDS = 4.0  # less than the loop waits for all links together
_KEPT_BUFFERS = 32


class PartInFlight(Protocol):
    """The bytes of one part in one direction. Their memory is in use until they are over."""

    failure: str
    copying: bool  # whether a copy is under way whose end nothing announces

    def over(self) -> bool:
        """Does what can be done now, and says whether everything is."""


class PartMemory(Protocol):
    """Registered memory, as the bytes of parts. Spans have been checked. No method raises."""

    lengths: tuple[int, ...]

    def send(self, link: "UcxLink", part: int, spans: Spans) -> PartInFlight: ...

    def receive(self, link: "UcxLink", part: int, spans: Spans, announce: Callable[[], None]) -> PartInFlight:
        """announce: lets the peer send; called once, when this end is ready in this turn."""


class RegionViews:
    """The registered regions of host memory as arrays."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self.lengths = tuple(region.length_bytes for region in regions)
        self._views = [_view(region) for region in regions]

    def send(self, link: "UcxLink", part: int, spans: Spans) -> "PartTransfer":
        return link.send(part, self.pieces(spans))

    def receive(
        self, link: "UcxLink", part: int, spans: Spans, announce: Callable[[], None]
    ) -> "PartTransfer":
        """Announces before it posts the receives: the message travels meanwhile, and this side reads from
        its network only in a later turn."""
        announce()
        return link.receive(part, self.pieces(spans))

    def pieces(self, spans: Spans) -> list[Bytes]:
        columns = zip(spans.regions.tolist(), spans.offsets.tolist(), spans.lengths.tolist(), strict=True)
        return [self._views[region][offset : offset + length] for region, offset, length in columns]


def _view(region: Region) -> Bytes:
    array = (ctypes.c_ubyte * region.length_bytes).from_address(region.address)
    return np.frombuffer(memoryview(array), np.uint8)


class PackBuffers:
    """Buffers for messages of several pieces. They are reused: new memory costs more than copying the
    pieces."""

    def __init__(self) -> None:
        self._free: list[Bytes] = []

    def take(self) -> Bytes:
        return self._free.pop() if self._free else np.empty(wire.PACK_BYTES, np.uint8)

    def give_back(self, buffer: Bytes) -> None:
        if len(self._free) < _KEPT_BUFFERS:
            self._free.append(buffer)


@dataclass(slots=True)
class _Parcel:
    """A message. shared: the buffer of several pieces. pieces: the memory that its bytes are copied to."""

    request: UcxRequest
    shared: Bytes | None = None
    pieces: Sequence[Bytes] = ()


class PartTransfer:
    """The messages of one part in one direction. Their memory is in use until the transfer is over."""

    copying = False

    def __init__(self, parcels: Iterable[_Parcel], buffers: PackBuffers) -> None:
        self.failure = ""
        self._parcels = deque(parcels)
        self._buffers = buffers

    def over(self) -> bool:
        """Handles what has arrived since the last call, and says whether everything has."""
        while self._parcels and self._parcels[0].request.over:
            parcel = self._parcels.popleft()
            self.failure = self.failure or parcel.request.failure
            if parcel.shared is not None:
                if not self.failure:
                    _scatter(parcel.shared, parcel.pieces)
                self._buffers.give_back(parcel.shared)
        return not self._parcels


class UcxLink:
    """One end of a connection. No method raises: a transfer that cannot start is one that has failed."""

    def __init__(
        self, number: int, endpoint: UcxEndpoint, buffers: PackBuffers, peer_number: int = 0
    ) -> None:
        self.number = number
        self._buffers = buffers
        self.peer_number = peer_number
        self._endpoint = endpoint
        self._outbox: deque[UcxRequest] = deque()  # control messages, whose buffers it keeps
        self._data: deque[UcxRequest] = deque()  # messages of parts on their way to the peer
        self._leave_by: float | None = None
        self._last_words = b""
        self._said_bye = False
        self._peer_has_left = False
        self._closed = False

    @property
    def alive(self) -> bool:
        return self._endpoint.alive

    @property
    def leaving(self) -> bool:
        """Says whether no new part may start."""
        return self._closed or self._leave_by is not None

    @property
    def gone(self) -> bool:
        """Says whether the link is closed and no control message is in flight. Data may still be in
        flight."""
        return self._closed and self._quiet()

    def leave(self, reason: str, at_once: bool = False) -> None:
        """Sends BYE with the reason after the data in flight, and closes when the peer has sent BYE, is dead,
        or does not answer in time. Closing an endpoint drops what is not sent yet, and the other end does not
        notice it. at_once: does not wait for the peer."""
        self._last_words = reason.encode()
        patience = _SENDING_SECONDS if self._data else _LEAVE_SECONDS
        self._leave_by = time.monotonic() + (0.0 if at_once else patience)
        self._say_bye()

    def note_bye(self) -> None:
        """Notes that the peer has sent BYE."""
        self._peer_has_left = True

    def advance(self, now: float) -> None:
        while self._data and self._data[0].over:
            self._data.popleft()
        if self._leave_by is None or self._closed:
            return
        self._say_bye()
        both_left = self._said_bye and self._peer_has_left
        if now > self._leave_by or not self.alive or (both_left and self._quiet()):
            self.close()

    def close(self) -> None:
        """Closes at once. Messages in flight end soon."""
        self._closed = True
        self._endpoint.close()

    def send_control(self, kind: wire.MessageKind, part: int = 0, body: bytes = b"") -> None:
        message = wire.ControlMessage(kind, self.peer_number, part, body)
        self._outbox.append(self._endpoint.send(message.pack(), wire.CONTROL_TAG))

    def send(self, part: int, pieces: Sequence[Bytes]) -> PartTransfer:
        tag = wire.data_tag(self.peer_number, part)
        return PartTransfer([self._send(group, tag) for group in _groups(pieces)], self._buffers)

    def receive(self, part: int, pieces: Sequence[Bytes]) -> PartTransfer:
        tag = wire.data_tag(self.number, part)
        return PartTransfer([self._receive(group, tag) for group in _groups(pieces)], self._buffers)

    def send_messages(self, part: int, messages: Sequence[Bytes]) -> PartTransfer:
        """Sends pieces that are packed as their messages need it."""
        tag = wire.data_tag(self.peer_number, part)
        return PartTransfer([self._send([one], tag) for one in messages], self._buffers)

    def receive_messages(self, part: int, messages: Sequence[Bytes]) -> PartTransfer:
        tag = wire.data_tag(self.number, part)
        return PartTransfer([_Parcel(self._endpoint.receive(one, tag)) for one in messages], self._buffers)

    def _send(self, group: Sequence[Bytes], tag: int) -> _Parcel:
        shared = None
        if len(group) == 1:
            message = group[0]
        else:
            shared = self._buffers.take()
            message = np.concatenate(group, out=shared[: sum(map(len, group))])
        request = self._endpoint.send(message, tag)
        self._data.append(request)
        return _Parcel(request, shared)

    def _receive(self, group: Sequence[Bytes], tag: int) -> _Parcel:
        if len(group) == 1:
            return _Parcel(self._endpoint.receive(group[0], tag))
        shared = self._buffers.take()
        packed = shared[: sum(map(len, group))]
        return _Parcel(self._endpoint.receive(packed, tag), shared, group)

    def _say_bye(self) -> None:
        """Sends BYE once, when no data is in flight."""
        if not self._said_bye and all(request.over for request in self._data):
            self._said_bye = True
            self.send_control(wire.MessageKind.BYE, body=self._last_words)

    def _quiet(self) -> bool:
        while self._outbox and self._outbox[0].over:
            self._outbox.popleft()
        return not self._outbox


def _groups(pieces: Sequence[Bytes]) -> list[Sequence[Bytes]]:
    return [pieces[group] for group in wire.packed([len(piece) for piece in pieces])]


def _scatter(buffer: Bytes, pieces: Sequence[Bytes]) -> None:
    offset = 0
    for piece in pieces:
        piece[:] = buffer[offset : offset + len(piece)]
        offset += len(piece)
