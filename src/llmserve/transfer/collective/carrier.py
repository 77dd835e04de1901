"""Moves bytes over a process group of two ranks, in pieces, so that copying and sending overlap."""

import itertools
import re
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Memory, Region, Spans
from llmserve.transfer.collective.backend import SILENCE, Backend, PendingMessage, RankPair
from llmserve.transfer.collective.rows import gather, scatter
from llmserve.transfer.spans import coalesce, split
from llmserve.transfer.twosided import wire

PIECE_BYTES = 8 << 20
_REASON_SECONDS = 1.0
DEPTH = 3  # pieces in flight; each has staging memory of its own if it needs some


class GroupCarriers:
    connections = 2
    same_socket = False
    answer_seconds: float | None = SILENCE.total_seconds()

    def __init__(self, backend: Backend) -> None:
        self.name = backend.name
        self._backend = backend

    def reaches(self, memory: Memory) -> bool:
        return memory == self._backend.memory

    def open(self, sock: socket.socket, regions: Sequence[Region], rank: int) -> "GroupCarrier":
        store = make_store(sock)
        self._agree(store, rank)
        try:
            pair = self._backend.pair(store, rank)
            carrier = GroupCarrier(self._backend, pair, store, regions, sock)
            carrier.test(rank)
        except RuntimeError as error:
            raise TransferError(_brief(error)) from error
        store.seal()
        return carrier

    def close(self) -> None:
        self._backend.close()

    def _agree(self, store: Any, rank: int) -> None:
        """Compares both ends: with different piece sizes or releases of torch they would crash each other."""
        mine = f"{self._backend.identity}, pieces of {PIECE_BYTES} bytes"
        store.set(f"identity of {rank}", mine)
        theirs = store.get(f"identity of {1 - rank}").decode(errors="replace")
        if theirs != mine:
            raise TransferError(f"the peer runs {theirs[:200]}; this process {mine}")


class _Piece(NamedTuple):
    spans: Spans
    tensor: Any  # the piece itself if it is contiguous, or else staging memory
    in_place: bool
    acknowledged: bool  # its staging memory is used again within this request


class GroupCarrier:
    """Moves the bytes of requests. Both ends cut a request into the same pieces, whatever their spans are."""

    def __init__(
        self, backend: Backend, pair: RankPair, store: Any, regions: Sequence[Region], sock: socket.socket
    ) -> None:
        self._backend = backend
        self._pair: RankPair | None = pair
        self._store = store  # the group needs it
        self._regions = [backend.map(region) for region in regions]
        self._socket = sock
        self._staging: list[Any] = []
        self._unsettled: deque[PendingMessage] = deque()
        self._was_cut = False

    def test(self, rank: int) -> None:
        """Sends one byte to test the pair. NCCL connects only with the first message."""
        byte = self._backend.staging(1)
        with self._guarded() as pair:
            message = pair.send(byte, True) if rank == 0 else pair.receive(byte, True)
            message.wait()

    def send(self, spans: Spans) -> None:
        with self._guarded() as pair:
            for piece in self._pieces(spans):
                if len(self._unsettled) == DEPTH:
                    self._unsettled.popleft().wait()
                if not piece.in_place:
                    gather(self._backend.copier, self._regions, piece.spans, piece.tensor)
                self._unsettled.append(pair.send(piece.tensor, piece.acknowledged))

    def settle(self) -> None:
        with self._guarded():
            while self._unsettled:
                self._unsettled.popleft().wait()

    def receive(self, spans: Spans, ask: Callable[[], None], confirm: Callable[[], None]) -> None:
        with self._guarded() as pair:
            ask()
            try:
                self._receive(pair, spans)
            except RuntimeError:
                self._socket.settimeout(_REASON_SECONDS)
                confirm()  # a peer that refuses ends the group and sends the reason
                raise
            confirm()

    def _receive(self, pair: RankPair, spans: Spans) -> None:
        posted = ((pair.receive(piece.tensor, piece.acknowledged), piece) for piece in self._pieces(spans))
        flying = deque(itertools.islice(posted, DEPTH))
        while flying:
            message, piece = flying.popleft()
            message.wait()
            if not piece.in_place:
                scatter(self._backend.copier, piece.tensor, self._regions, piece.spans)
            flying.extend(itertools.islice(posted, 1))

    def cut(self) -> None:
        self._was_cut = True
        if self._pair is not None:
            self._pair.cut()

    def close(self) -> None:
        """Drops the group, which ends with the last reference to it."""
        if self._unsettled:
            self.cut()
            self._unsettled.clear()
        self._pair = self._store = None
        self._staging.clear()
        self._regions.clear()

    def _pieces(self, spans: Spans) -> Iterator[_Piece]:
        last = (spans.total_bytes - 1) // PIECE_BYTES
        for number, piece in enumerate(split(coalesce(spans), PIECE_BYTES)):
            in_place = len(piece.lengths) == 1
            if in_place:
                start, size = int(piece.offsets[0]), int(piece.lengths[0])
                tensor = self._regions[piece.regions[0]][start : start + size]
            else:
                tensor = self._slot(number % DEPTH)[: piece.total_bytes]
            yield _Piece(piece, tensor, in_place, number + DEPTH <= last)

    def _slot(self, slot: int) -> Any:
        while len(self._staging) <= slot:
            self._staging.append(self._backend.staging(PIECE_BYTES))
        return self._staging[slot]

    @contextmanager
    def _guarded(self) -> Iterator[RankPair]:
        """Ensures that nothing is in flight when an error leaves it. A message that was cut may look complete
        (NCCL's do), so the cut itself is checked."""
        assert self._pair is not None, "open"
        with self._backend.stream():
            try:
                yield self._pair
                if self._was_cut:
                    raise TransferError(f"{self._backend.name}: cut")
            except BaseException as error:
                self.cut()
                if isinstance(error, RuntimeError):
                    raise TransferError(f"{self._backend.name}: {_brief(error)}") from error
                raise


def _brief(error: RuntimeError) -> str:
    """Returns the message without the place in torch's sources and the advice after it."""
    return re.sub(r"^\[[^\]]*\] ", "", str(error)).split(". ", 1)[0]


_HEAD = struct.Struct("<II")
_MAX_BYTES = 1 << 16


def make_store(sock: socket.socket) -> Any:
    """Returns a torch.distributed.Store: one end sets a value and the other gets it, until `seal`. Its waits
    end with the timeout of the socket. Keep it as long as its group."""
    from torch.distributed import Store

    class ConnectionStore(Store):  # type: ignore[misc]  # torch is not seen by mypy; it must be a subclass
        def __init__(self) -> None:
            super().__init__()
            self._values: dict[str, bytes] = {}
            self._sealed = False

        def set(self, key: str, value: bytes | str) -> None:
            data = value.encode() if isinstance(value, str) else bytes(value)
            self._values[key] = data
            if not self._sealed:
                _send_value(sock, key, data)

        def get(self, key: str) -> bytes:
            self.wait([key])
            return self._values[key]

        def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
            while not self.check(keys):
                if self._sealed:
                    raise TransferError(f"the group asks for {keys} after it was made")
                name, data = _receive_value(sock)
                self._values[name] = data

        def check(self, keys: Sequence[str]) -> bool:
            return all(key in self._values for key in keys)

        def seal(self) -> None:
            """Keeps values that are set from now on at this end, because the connection is used for
            requests."""
            self._sealed = True

    return ConnectionStore()


def _send_value(sock: socket.socket, key: str, data: bytes) -> None:
    name = key.encode()
    sock.sendall(_HEAD.pack(len(name), len(data)) + name + data)


def _receive_value(sock: socket.socket) -> tuple[str, bytes]:
    """Errors: TransferError."""
    name_bytes, data_bytes = _HEAD.unpack(wire.receive_exactly(sock, _HEAD.size))
    if max(name_bytes, data_bytes) > _MAX_BYTES:
        raise TransferError("malformed message of a group")
    name = wire.receive_exactly(sock, name_bytes).decode(errors="replace")
    return name, bytes(wire.receive_exactly(sock, data_bytes))
