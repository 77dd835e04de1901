"""What a peer that is broken, or made up, says of itself."""

import json
from typing import Any

import pytest

from llmserve.core.errors import TransferError
from llmserve.transfer.nixl import parse_description
from llmserve.transfer.shm.identity import ShmPeer
from llmserve.transfer.twosided.client import ServerAddress
from llmserve.transfer.ucx.client import WorkerAddress
from llmserve.transfer.ucx.server import read_hello
from llmserve.transfer.ucx.wire import pack_address

SOME: dict[str, dict[str, Any]] = {
    "tcp": {"host": "h", "port": 1, "token": "00" * 16, "generation": 1, "regions": [64]},
    "ucx": {
        "version": 2,
        "ucx": "1.20.0",
        "worker": pack_address(b"w"),
        "token": "t",
        "generation": 1,
        "regions": [64],
    },
    "shm": {"boot_id": "b", "pid_namespace": 1, "pid": 2, "beacon": 8, "addresses": [8], "lengths": [8]},
    "nixl": {"agent": "AAAA", "addresses": [8], "lengths": [8]},
}
TOO_LARGE = 10**30


def parsed(transport: str, text: bytes) -> object:
    match transport:
        case "tcp":
            return ServerAddress.parse(text, "tcp")
        case "ucx":
            return WorkerAddress.parse(text, "1.20.1")
        case "shm":
            return ShmPeer.parse(text)
        case _:
            return parse_description(text)


def edited(transport: str, **changes: Any) -> bytes:
    return json.dumps({**SOME[transport], **changes}).encode()


@pytest.mark.parametrize("transport", SOME)
def test_what_a_process_says_of_itself_is_read(transport: str) -> None:
    parsed(transport, edited(transport))
    parsed(transport, edited(transport, of_a_later_version=1))


@pytest.mark.parametrize("transport", SOME)
@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a": ' * 100_000, b'{"\x81": 1}', b'"\xff'])
def test_text_that_is_no_description(transport: str, text: bytes) -> None:
    with pytest.raises(TransferError, match=f"{transport}: malformed description"):
        parsed(transport, text)


@pytest.mark.parametrize(
    ("transport", "changes"),
    [
        ("tcp", {"regions": [TOO_LARGE]}),
        ("tcp", {"regions": [-1]}),
        ("tcp", {"generation": float("inf")}),
        ("tcp", {"generation": TOO_LARGE}),
        ("tcp", {"port": 1 << 16}),
        ("tcp", {"token": "zz" * 16}),
        ("tcp", {"token": "00"}),
        ("ucx", {"regions": [TOO_LARGE]}),
        ("ucx", {"version": float("inf")}),
        ("shm", {"pid": 0}),
        ("shm", {"lengths": [8, 8]}),
        ("nixl", {"lengths": [TOO_LARGE]}),
        ("nixl", {"devices": [float("inf")]}),
        ("nixl", {"agent": "not base64"}),
    ],
)
def test_numbers_that_no_memory_has(transport: str, changes: dict[str, Any]) -> None:
    """They would end the engine later, where they are put into arrays and messages."""
    with pytest.raises(TransferError, match=f"{transport}: malformed description"):
        parsed(transport, edited(transport, **changes))


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"token": "\x81"}', b'{"token": "t", "worker": 1}', b"1"])
def test_a_hello_that_is_none(body: bytes) -> None:
    with pytest.raises(TransferError):
        read_hello(body, "t")
