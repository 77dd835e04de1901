"""What other processes send: messages of engines and transports, and what proves who calls. Each function
imports its decoder when it is called: what is fuzzed is instrumented then."""

from contextlib import suppress
from typing import Any

from bench.fuzz.case import DEEP, FuzzCase, as_json


class SentBytes:
    """A socket that a peer has closed after these bytes."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    def recv_into(self, buffer: memoryview, size: int = 0, flags: int = 0) -> int:
        taken, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def side_channel() -> FuzzCase:
    """The first byte chooses: a request below 128, an answer from there on."""
    from llmserve.core.errors import TransferError
    from llmserve.engines.kv_transfer.protocol import (
        AskDigest,
        Hello,
        Welcome,
        decode_answer,
        decode_request,
        encode,
    )
    from llmserve.transfer.spans import check_bounds
    from tests.support.side_channel import ANSWERS, GEOMETRY, REQUESTS

    def decode(data: bytes) -> None:
        message = (decode_request if data[:1] < b"\x80" else decode_answer)(data[1:])
        if isinstance(message, AskDigest):
            check_bounds(message.spans(), (4096, 64), "remote")
        if isinstance(message, Hello | Welcome):
            GEOMETRY.obstacle(message.geometry)

    seeds = [
        *(b"\x00" + encode(request) for request in REQUESTS),
        *(b"\x80" + encode(answer) for answer in ANSWERS),
    ]
    return FuzzCase(decode, (TransferError,), seeds)


def ucx() -> FuzzCase:
    """Messages between the ends of a connection."""
    import numpy as np

    from llmserve.core.errors import TransferError
    from llmserve.transfer.base import Spans
    from llmserve.transfer.spans import check_bounds, pack_spans
    from llmserve.transfer.ucx.server import read_hello
    from llmserve.transfer.ucx.wire import ControlMessage, MessageKind, pack_address, part_spans, unpack

    def decode(data: bytes) -> None:
        message = unpack(data)
        if message.kind is MessageKind.HELLO:
            read_hello(message.body, "a token")
        else:
            check_bounds(part_spans(message.body), (4096, 64), "remote")

    hello = as_json(token="a token", worker=pack_address(b"an address"), generation=1)
    spans = pack_spans(Spans(np.array([0, 1]), np.array([0, 8]), np.array([64, 8])))
    bodies = {MessageKind.HELLO: hello, MessageKind.READ: spans, MessageKind.WRITE: spans}
    seeds = [ControlMessage(kind, 1, 2, bodies.get(kind, b"")).pack().tobytes() for kind in MessageKind]
    seeds.append(ControlMessage(MessageKind.HELLO, 0, 1, DEEP).pack().tobytes())
    return FuzzCase(decode, (TransferError, ValueError), seeds)


def tcp() -> FuzzCase:
    """Frames of a connection, each from its beginning: a hello, requests, and the reply to one."""
    import numpy as np

    from llmserve.core.errors import TransferError
    from llmserve.transfer.base import Spans
    from llmserve.transfer.spans import check_bounds
    from llmserve.transfer.twosided import wire

    def decode(data: bytes) -> None:
        sent: Any = SentBytes(data[1:])
        match data[:1]:
            case b"\x00":
                wire.receive_hello(sent)
            case b"\x01":
                wire.receive_reply(sent)
            case _:
                while True:
                    check_bounds(wire.receive_request(sent)[1], (4096, 64), "remote")

    class Kept(SentBytes):
        def sendall(self, data: bytes, flags: int = 0) -> None:
            self.data = data

    kept: Any = Kept(b"")

    def sent_by(send: Any, *values: Any) -> bytes:
        send(kept, *values)
        return bytes(kept.data)

    spans = Spans(np.array([0, 1]), np.array([0, 8]), np.array([64, 8]))
    seeds = (
        b"\x00" + sent_by(wire.send_hello, bytes(wire.TOKEN_BYTES), 1),
        b"\x01" + sent_by(wire.refuse, "no"),
        b"\x02" + 2 * sent_by(wire.send_request, wire.TransferOperation.READ, spans),
    )
    return FuzzCase(decode, (TransferError, ConnectionError), seeds)


def descriptions() -> FuzzCase:
    """What processes write of themselves for each transport, and how their regions are used then."""
    import numpy as np

    from llmserve.core.errors import TransferError
    from llmserve.transfer.base import Spans
    from llmserve.transfer.nixl import parse_description
    from llmserve.transfer.shm.identity import ShmPeer
    from llmserve.transfer.spans import RegionTable, check_bounds
    from llmserve.transfer.twosided.client import ServerAddress
    from llmserve.transfer.ucx.client import WorkerAddress
    from llmserve.transfer.ucx.wire import pack_address

    first = Spans(*np.array([[0], [0], [1]]))

    def use(table: RegionTable) -> None:
        check_bounds(first, table.lengths, "remote")
        table.starts(first)

    def decode(data: bytes) -> None:
        with suppress(TransferError):
            check_bounds(first, ServerAddress.parse(data, "tcp").region_lengths, "remote")
        with suppress(TransferError):
            check_bounds(first, WorkerAddress.parse(data, "1.20.0").region_lengths, "remote")
        with suppress(TransferError):
            use(parse_description(data)[1].table)
        use(ShmPeer.parse(data).table)

    memory: dict[str, Any] = {"addresses": [4096], "lengths": [64]}
    common: dict[str, Any] = {"generation": 1, "regions": [64]}
    seeds = (
        as_json(host="127.0.0.1", port=1, token="00" * 16, **common),
        as_json(version=2, ucx="1.20.0", worker=pack_address(b"w"), token="t", **common),
        as_json(agent="AAAA", devices=[0], **memory),
        as_json(boot_id="b", pid_namespace=1, pid=2, beacon=8, nonce="n", **memory),
        b'{"regions":' + DEEP,
    )
    return FuzzCase(decode, (TransferError,), seeds)


def credentials() -> FuzzCase:
    from llmserve.core.errors import NotAuthenticated
    from llmserve.rpc.callers import CallerIdentity, CallerRole
    from llmserve.rpc.credentials import Credentials

    own = Credentials(CallerIdentity(CallerRole.ROUTER, "a"), b"s" * 32)

    def decode(data: bytes) -> None:
        own.caller_of([("llmserve-caller", data.decode("latin-1"))])

    return FuzzCase(decode, (NotAuthenticated,), (b"router/router-0/00",))
