"""The requesting half: sends batches to one peer in parts, a few of them at a time."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, TransferState, TransferStatus, nobody
from llmserve.transfer.description import Count, malformed, parse_fields
from llmserve.transfer.spans import pack_spans
from llmserve.transfer.ucx import wire
from llmserve.transfer.ucx.link import PartInFlight, PartMemory, UcxLink
from llmserve.transfer.ucx.loop import UcxLoop

DIAL_SECONDS = 2.0
_CANCEL_SECONDS = 1.0
_MAX_DIALS = 4
_REDIAL_SECONDS = 0.05
_PARTS_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """The contents of a description."""

    worker: bytes
    token: str
    generation: int
    region_lengths: tuple[int, ...]

    @classmethod
    def parse(cls, description: bytes, ucx_version: str) -> "WorkerAddress":
        """Errors: TransferError for a description that no `describe` has made, or a peer of another
        version."""
        fields = parse_fields(_UcxFields, description, "ucx")
        if fields.version != wire.VERSION:
            what = f"version {fields.version} of this transport, not {wire.VERSION}"
            raise TransferError(f"ucx: the peer speaks {what}")
        if _release(fields.ucx) != _release(ucx_version):
            raise TransferError(f"ucx: the peer has UCX {fields.ucx}, here is {ucx_version}")
        try:
            worker = wire.unpack_address(fields.worker)
        except ValueError as error:
            raise malformed("ucx", error) from error
        return cls(worker, fields.token, fields.generation, fields.regions)


class _UcxFields(msgspec.Struct):
    version: int
    ucx: str
    worker: str
    token: str
    generation: Count
    regions: tuple[Count, ...]


def _release(version: str) -> list[str]:
    return version.split(".")[:2]


@dataclass(eq=False, slots=True)
class UcxTransfer:
    """One batch. Only turns of the loop write it. `ended` is set, and then `on_end` called, after the last
    access to local memory."""

    operation: wire.MessageKind
    memory: PartMemory
    parts: deque[Batch]
    on_end: Callable[[], object] = nobody
    moving: int = 0
    failure: str = ""
    cancelled_at: float | None = None
    status: TransferStatus = field(default_factory=lambda: TransferStatus(TransferState.RUNNING))
    ended: threading.Event = field(default_factory=threading.Event)

    def fail(self, reason: str) -> None:
        """Starts no further parts. The transfer ends when the parts in flight have ended."""
        self.failure = self.failure or reason
        self.parts.clear()
        self.end_if_idle()

    def cancel(self) -> None:
        """Parts in flight may still arrive. If they do not soon, the connection is given up."""
        if self.cancelled_at is None:
            self.cancelled_at = time.monotonic()
            self.fail("cancelled")

    def end_if_idle(self) -> None:
        if self.moving or self.parts or self.ended.is_set():
            return
        state = TransferState.FAILED if self.failure else TransferState.DONE
        self.status = TransferStatus(state, f"ucx: {self.failure}" if self.failure else "")
        self.ended.set()
        self.on_end()


@dataclass(slots=True)
class _BatchPart:
    """confirmed: the peer sends nothing more about this part."""

    transfer: UcxTransfer
    batch: Batch
    flow: PartInFlight | None
    confirmed: bool


class UcxConnection:
    """The requester's end, which lives in turns of the loop. `settled` is set once it is open or lost."""

    def __init__(self, loop: UcxLoop, address: WorkerAddress) -> None:
        """Sends HELLO. Errors: TransferError when the peer's address is of no use."""
        self.number = loop.next_number()
        self.lost = ""
        self.settled = threading.Event()
        self._loop = loop
        self._address = address
        self._dials = 0
        self._links: list[UcxLink] = []
        self._open = False
        self._deadline = time.monotonic() + DIAL_SECONDS
        self._waiting: deque[UcxTransfer] = deque()
        self._parts: dict[int, _BatchPart] = {}
        self._last_part = 0
        self._dial()
        loop.add(self)

    def submit(self, transfer: UcxTransfer) -> None:
        self._waiting.append(transfer)

    @property
    def busy(self) -> bool:
        return bool(not self.settled.is_set() or self._waiting or self._parts or self.lost)

    @property
    def gone(self) -> bool:
        return bool(self.lost) and not self._parts and all(link.gone for link in self._links)

    @property
    def _link(self) -> UcxLink:
        return self._links[-1]

    def deliver(self, message: wire.ControlMessage) -> None:
        if message.kind is wire.MessageKind.BYE:
            self._link.note_bye()
            self.lose(wire.parting(message))
        if self.lost:
            return
        if message.kind is wire.MessageKind.WELCOME:
            self._link.peer_number = message.part
            self._open = True
            self.settled.set()
        elif message.kind is wire.MessageKind.REFUSED:
            self.lose(f"refused by the peer: {message.body.decode(errors='replace')}")
        elif part := self._parts.get(message.part):
            self._go_on(message, part)

    def advance(self, now: float) -> bool:
        if not self.lost:
            self._check(now)
        self._link.advance(now)
        worked = self._collect()
        while self._open and not self.lost and self._waiting and len(self._parts) < _PARTS_IN_FLIGHT:
            worked = True
            self._start_next()
        return worked

    def lose(self, reason: str, at_once: bool = False) -> None:
        """at_once: does not wait until the peer says BYE."""
        if self.lost:
            return
        self.lost = reason
        if self._open:
            self._link.leave(reason, at_once)
        else:
            self._link.close()
        for transfer in [*self._waiting, *(part.transfer for part in self._parts.values())]:
            transfer.fail(reason)
        self._waiting.clear()
        self.settled.set()

    def _dial(self) -> None:
        """Errors: TransferError."""
        self._dials += 1
        self._dial_again_at = time.monotonic() + _REDIAL_SECONDS
        link = UcxLink(self.number, self._loop.worker.connect(self._address.worker))
        hello = {
            "token": self._address.token,
            "generation": self._address.generation,
            "worker": wire.pack_address(self._loop.worker.address),
        }
        link.send_control(wire.MessageKind.HELLO, self.number, json.dumps(hello).encode())
        self._links.append(link)

    def _check(self, now: float) -> None:
        overdue = now - _CANCEL_SECONDS
        if not self._link.alive:
            self._mend(now)
        elif not self._open and now > self._deadline:
            self.lose(f"no answer within {DIAL_SECONDS:g} s")
        elif any((part.transfer.cancelled_at or now) < overdue for part in self._parts.values()):
            self.lose("a cancelled transfer did not end", at_once=True)

    def _mend(self, now: float) -> None:
        """Connects again: the end of an earlier connection to the same process can break a new one."""
        if self._open or self._dials == _MAX_DIALS:
            self.lose("the connection broke")
            return
        self._link.close()
        if now < self._dial_again_at:
            return
        self._loop.renumber(self)
        try:
            self._dial()
        except TransferError as error:
            self.lose(error.message)

    def _collect(self) -> bool:
        ended = [number for number, part in self._parts.items() if self._has_ended(part)]
        for number in ended:
            part = self._parts.pop(number)
            part.transfer.moving -= 1
            part.transfer.end_if_idle()
        return bool(ended) or any(part.flow and part.flow.copying for part in self._parts.values())

    def _has_ended(self, part: _BatchPart) -> bool:
        if part.flow is None or not part.flow.over():
            return part.flow is None and bool(self.lost)
        if part.flow.failure:  # a peer that waits for bytes of this part learns it from the end only
            self.lose(part.flow.failure)
        return part.confirmed or bool(self.lost)

    def _start_next(self) -> None:
        transfer = self._waiting[0]
        if transfer.parts:
            self._last_part += 1
            self._ask(self._last_part, transfer, transfer.parts.popleft())
        if not transfer.parts:
            self._waiting.popleft()

    def _ask(self, number: int, transfer: UcxTransfer, batch: Batch) -> None:
        link, body = self._link, pack_spans(batch.remote)

        def ask() -> None:
            link.send_control(transfer.operation, number, body)

        part = _BatchPart(transfer, batch, None, confirmed=False)
        if transfer.operation is wire.MessageKind.READ:
            part.flow = transfer.memory.receive(link, number, batch.local, ask)
            part.confirmed = True
        else:
            ask()
        self._parts[number] = part
        transfer.moving += 1

    def _go_on(self, message: wire.ControlMessage, part: _BatchPart) -> None:
        if message.kind is wire.MessageKind.READY and part.flow is None:
            part.flow = part.transfer.memory.send(self._link, message.part, part.batch.local)
        elif message.kind is wire.MessageKind.DONE:
            part.confirmed = True


class UcxClient:
    """The connections of one transport. They live in turns of the loop."""

    def __init__(self, loop: UcxLoop) -> None:
        self._loop = loop
        self._connections: dict[str, UcxConnection] = {}

    def connect(self, name: str, address: WorkerAddress) -> UcxConnection:
        """Returns the connection, a new one when it was lost. Errors: TransferError."""
        connection = self._connections.get(name)
        if connection is None or connection.lost:
            connection = self._connections[name] = UcxConnection(self._loop, address)
        return connection

    def submit(self, name: str, address: WorkerAddress, transfer: UcxTransfer) -> None:
        try:
            self.connect(name, address).submit(transfer)
        except TransferError as error:
            transfer.fail(error.message)

    def disconnect(self, name: str, reason: str) -> None:
        if connection := self._connections.pop(name, None):
            connection.lose(reason)
