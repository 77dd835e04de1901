"""One end of a connection to the worker of a peer, and the bytes in flight over it."""

import ctypes
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from llmserve.transfer.base import Int64Array, Region, Spans
from llmserve.transfer.spans import RegionTable, coalesce, vectors
from llmserve.transfer.ucx import wire
from llmserve.transfer.ucx.library import EAGER_BELOW_BYTES, Bytes, MessageInFlight, UcxEndpoint, UcxRequest

_LEAVE_SECONDS = 0.5
_SENDING_SECONDS = 4.0  # less than the loop waits for all links together


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
        self._table = RegionTable.of(regions)
        self.lengths = self._table.lengths
        self._views = [_view(region) for region in regions]

    def send(self, link: "UcxLink", part: int, spans: Spans) -> "PartTransfer":
        """Packs the pieces of a short message: UCX would make a fragment of every six of them."""
        joined = coalesce(spans)
        if len(joined.lengths) == 1:
            return link.send(part, self._piece(joined))
        if joined.total_bytes < EAGER_BELOW_BYTES:
            pieces = [self._piece(joined.cut(slice(one, one + 1))) for one in range(len(joined.lengths))]
            return link.send(part, np.concatenate(pieces))
        return link.send_pieces(part, self._vectors(joined))

    def receive(
        self, link: "UcxLink", part: int, spans: Spans, announce: Callable[[], None]
    ) -> "PartTransfer":
        """Announces before it posts the receive: the message travels meanwhile, and this side reads from
        its network only in a later turn."""
        announce()
        joined = coalesce(spans)
        if len(joined.lengths) == 1:
            return link.receive(part, self._piece(joined))
        return link.receive_pieces(part, self._vectors(joined))

    def _piece(self, spans: Spans) -> Bytes:
        start = int(spans.offsets[0])
        return self._views[int(spans.regions[0])][start : start + int(spans.lengths[0])]

    def _vectors(self, spans: Spans) -> Int64Array:
        return vectors(self._table.starts(spans), spans.lengths)


def _view(region: Region) -> Bytes:
    array = (ctypes.c_ubyte * region.length_bytes).from_address(region.address)
    return np.frombuffer(memoryview(array), np.uint8)


class PartTransfer:
    """The message of one part in one direction. Its memory is in use until the transfer is over."""

    copying = False

    def __init__(self, request: MessageInFlight) -> None:
        self.failure = ""
        self._request = request

    def over(self) -> bool:
        if not self._request.over:
            return False
        self.failure = self._request.failure
        return True


class UcxLink:
    """One end of a connection. No method raises: a transfer that cannot start is one that has failed."""

    def __init__(self, number: int, endpoint: UcxEndpoint, peer_number: int = 0) -> None:
        self.number = number
        self.peer_number = peer_number
        self._endpoint = endpoint
        self._outbox: deque[UcxRequest] = deque()  # control messages, whose buffers it keeps
        self._data: deque[MessageInFlight] = deque()  # messages of parts on their way to the peer
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

    def send(self, part: int, piece: Bytes) -> PartTransfer:
        return self._sent(self._endpoint.send(piece, wire.data_tag(self.peer_number, part)))

    def send_pieces(self, part: int, vectors: Int64Array) -> PartTransfer:
        """vectors: the address and length of each piece."""
        return self._sent(self._endpoint.send_pieces(vectors, wire.data_tag(self.peer_number, part)))

    def receive(self, part: int, piece: Bytes) -> PartTransfer:
        return PartTransfer(self._endpoint.receive(piece, wire.data_tag(self.number, part)))

    def receive_pieces(self, part: int, vectors: Int64Array) -> PartTransfer:
        return PartTransfer(self._endpoint.receive_pieces(vectors, wire.data_tag(self.number, part)))

    def _sent(self, request: MessageInFlight) -> PartTransfer:
        self._data.append(request)
        return PartTransfer(request)

    def _say_bye(self) -> None:
        """Sends BYE once, when no data is in flight."""
        if not self._said_bye and all(request.over for request in self._data):
            self._said_bye = True
            self.send_control(wire.MessageKind.BYE, body=self._last_words)

    def _quiet(self) -> bool:
        while self._outbox and self._outbox[0].over:
            self._outbox.popleft()
        return not self._outbox
