"""The serving half: accepts peers, and has a session for each that reads and writes this side's memory."""

import hmac
import logging
from dataclasses import dataclass

import msgspec

from llmserve.core.errors import TransferError
from llmserve.core.logs import ScarceWarnings
from llmserve.transfer.description import Count, parse_fields
from llmserve.transfer.spans import check_bounds
from llmserve.transfer.ucx import wire
from llmserve.transfer.ucx.link import PartInFlight, PartMemory, RegionViews, UcxLink
from llmserve.transfer.ucx.loop import UcxLoop

_log = logging.getLogger(__name__)
_MAX_JOBS = 64


@dataclass(frozen=True, slots=True)
class _Job:
    flow: PartInFlight
    writes: bool  # whether it writes this side's memory, so that DONE is sent at its end


class UcxSession:
    """The owner's end of a connection, which lives in turns of the loop."""

    def __init__(self, loop: UcxLoop, worker_address: bytes, peer_number: int, memory: PartMemory) -> None:
        """Errors: TransferError when the requester's address is of no use."""
        self.number = loop.next_number()
        self.lost = ""
        self._link = UcxLink(self.number, loop.worker.connect(worker_address), peer_number)
        self._memory = memory
        self._jobs: dict[int, _Job] = {}
        loop.add(self)

    def welcome(self) -> None:
        self._link.send_control(wire.MessageKind.WELCOME, self.number)

    def refuse(self, reason: str) -> None:
        """Sends the reason. The requester leaves when it has read it."""
        _log.warning("ucx: refused a peer: %s", reason)
        self._link.send_control(wire.MessageKind.REFUSED, body=reason.encode())

    @property
    def busy(self) -> bool:
        return bool(self._jobs or self.lost)

    @property
    def gone(self) -> bool:
        return bool(self.lost) and not self._jobs and self._link.gone

    def deliver(self, message: wire.ControlMessage) -> None:
        if message.kind is wire.MessageKind.BYE:
            self._link.note_bye()
            self.lose(wire.parting(message))
        if self.lost:
            return
        try:
            self._serve(message)
        except TransferError as error:
            self.refuse(error.message)

    def advance(self, now: float) -> bool:
        if not self._link.alive:
            self.lose("the connection broke")
        self._link.advance(now)
        ended = [number for number, job in self._jobs.items() if job.flow.over()]
        for number in ended:
            self._end(number, self._jobs.pop(number))
        return bool(ended) or any(job.flow.copying for job in self._jobs.values())

    def lose(self, reason: str) -> None:
        if not self.lost:
            self.lost = reason
            self._link.leave(reason)

    def _serve(self, message: wire.ControlMessage) -> None:
        writes = message.kind is wire.MessageKind.WRITE
        if not writes and message.kind is not wire.MessageKind.READ:
            raise TransferError("an answer that nobody asked for")
        spans = wire.part_spans(message.body)
        check_bounds(spans, self._memory.lengths, "remote")
        if spans.total_bytes > wire.PART_BYTES or len(self._jobs) >= _MAX_JOBS or message.part in self._jobs:
            raise TransferError("more was asked for than one peer may have in flight")
        if writes:
            flow = self._memory.receive(self._link, message.part, spans, lambda: self._ready(message.part))
        else:
            flow = self._memory.send(self._link, message.part, spans)
        self._jobs[message.part] = _Job(flow, writes)

    def _ready(self, number: int) -> None:
        self._link.send_control(wire.MessageKind.READY, number)

    def _end(self, number: int, job: _Job) -> None:
        if job.flow.failure:
            self.lose(job.flow.failure)
        elif job.writes and not self.lost:
            self._link.send_control(wire.MessageKind.DONE, number)


class _UcxHello(msgspec.Struct):
    token: str
    worker: str
    generation: Count


def read_hello(body: bytes, token: str) -> tuple[bytes, int]:
    """Returns the requester's address, and the generation of memory that it expects. token: that of this
    process. Errors: TransferError, ValueError."""
    hello = parse_fields(_UcxHello, body, "ucx")
    if not hmac.compare_digest(hello.token.encode(), token.encode()):
        raise TransferError("it is meant for another process")
    return wire.unpack_address(hello.worker), hello.generation


class UcxServer:
    """Serves one generation of registered memory at a time, in turns of the loop."""

    def __init__(self, loop: UcxLoop, token: str) -> None:
        self._loop = loop
        self._token = token
        self._warnings = ScarceWarnings(_log)
        self._memory: PartMemory = RegionViews(())
        self.generation = 0
        loop.on_hello = self._accept_peer

    def serve(self, memory: PartMemory) -> None:
        """Replaces the memory, for peers that connect from now on."""
        self._memory = memory
        self.generation += 1

    def _accept_peer(self, message: wire.ControlMessage) -> None:
        """Accepts a peer. One that does not know the token gets no answer, and its address is not read."""
        try:
            worker, generation = read_hello(message.body, self._token)
            session = UcxSession(self._loop, worker, message.part, self._memory)
        except (ValueError, TransferError) as error:
            self._warnings.warning("ucx: a hello without an answer: %r", error)
            return
        if generation == self.generation:
            session.welcome()
        else:
            session.refuse("its memory was registered anew")
