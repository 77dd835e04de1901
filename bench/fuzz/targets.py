"""The decoders of what others send, each with the errors that it may raise.

Whatever else a decoder raises is a defect: its caller does not expect it. Checksums are made to fit, since no
fuzzer guesses one, and an attacker computes it.
"""

import io
import json
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

Decode = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class FuzzTarget:
    """make: imports the decoder, and returns it with the errors that it may raise. seeds: valid inputs."""

    make: Callable[[], tuple[Decode, tuple[type[Exception], ...]]]
    seeds: Sequence[bytes]


def _side_channel() -> tuple[Decode, tuple[type[Exception], ...]]:
    from llmserve.core.errors import TransferError
    from llmserve.engines.kv_transfer.protocol import decode_answer, decode_request

    def decode(data: bytes) -> None:
        (decode_request if data[:1] < b"\x80" else decode_answer)(data[1:])

    return decode, (TransferError,)


def _ucx() -> tuple[Decode, tuple[type[Exception], ...]]:
    from llmserve.core.errors import TransferError
    from llmserve.transfer.ucx.wire import part_spans, unpack, unpack_address

    def decode(data: bytes) -> None:
        message = unpack(data)
        part_spans(message.body)
        unpack_address(message.body.decode("latin-1"))

    return decode, (TransferError, ValueError)


def _block_header() -> tuple[Decode, tuple[type[Exception], ...]]:
    from llmserve.core.errors import BlockUnreadable
    from llmserve.kvstore.formats.header import Header

    def decode(data: bytes) -> None:
        head = struct.pack("<4sHH", b"LSKB", 1, len(data) & 0xFFFF) + data[:0xFFFF]
        Header.unpack(head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head)))

    return decode, (BlockUnreadable,)


def _archive() -> tuple[Decode, tuple[type[Exception], ...]]:
    from llmserve.kvstore.store.archive import WrongArchive, check

    def decode(data: bytes) -> None:
        size, text, rest = data[0] if data else 0, data[1:], b""
        text, rest = text[: size * 8], text[size * 8 :]
        head = struct.pack("<cI", b"B", len(text)) + text
        record = head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head))
        check(io.BytesIO(struct.pack("<8sI", b"LLMSKVX\n", 1) + record + rest))

    return decode, (WrongArchive,)


def _pack_index() -> tuple[Decode, tuple[type[Exception], ...]]:
    from llmserve.kvstore.tiers.object.layout import Footer, PackDamaged, decode_footer, decode_index

    def decode(data: bytes) -> None:
        decode_footer(memoryview(data), len(data))
        checksum = xxhash.xxh3_64_intdigest(data)
        decode_index(memoryview(data), Footer(len(data), len(data), 1, checksum, b""))

    def either(data: bytes) -> None:
        checksum = xxhash.xxh3_64_intdigest(data)
        decode_index(memoryview(data), Footer(len(data), len(data), 1, checksum, b""))
        decode(data)

    return either, (PackDamaged,)


def _removals() -> tuple[Decode, tuple[type[Exception], ...]]:
    from llmserve.kvstore.tiers.object.layout import PackDamaged
    from llmserve.kvstore.tiers.object.removals import decode_removals

    def decode(data: bytes) -> None:
        decode_removals(xxhash.xxh3_64_hexdigest(data).encode() + b"\n" + data)

    return decode, (PackDamaged,)


def _safetensors() -> tuple[Decode, tuple[type[Exception], ...]]:
    from llmserve.core.errors import InvalidRequest
    from llmserve.models.adapters.tensors import check_extent, read_header

    path = Path(tempfile.mkdtemp()) / "a.safetensors"  # within the folder that fuzz.py removes

    def decode(data: bytes) -> None:
        path.write_bytes(len(data).to_bytes(8, "little") + data)
        check_extent(path, read_header(path))

    return decode, (InvalidRequest,)


def _http_body() -> tuple[Decode, tuple[type[Exception], ...]]:
    from llmserve.apiserver.http.body import FIELDS, check_body, with_fields
    from llmserve.apiserver.limits.fields import check_fields
    from llmserve.apiserver.limits.media import check_media, may_have_urls
    from llmserve.config.schema.limits import SecurityLimits
    from llmserve.core.errors import InvalidRequest

    limits = SecurityLimits()

    def decode(data: bytes) -> None:
        check_body([(b"content-type", b"application/json")], data)
        fields = with_fields({"body": data})[FIELDS]
        if fields is not None:
            check_fields(fields, limits)
            if may_have_urls(data):
                check_media(fields, {"a.com"})

    return decode, (InvalidRequest,)


def _batch_lines() -> tuple[Decode, tuple[type[Exception], ...]]:
    from llmserve.apiserver.batches.lines import LineReader, parse_result

    def decode(data: bytes) -> None:
        reader = LineReader("/v1/completions")
        for number, line in enumerate(data.split(b"\n")):
            reader.read(number, line)
            parse_result(line)

    return decode, ()


def _credentials() -> tuple[Decode, tuple[type[Exception], ...]]:
    from llmserve.core.errors import NotAuthenticated
    from llmserve.rpc.credentials import CallerIdentity, CallerRole, Credentials

    credentials = Credentials(CallerIdentity(CallerRole.ROUTER, "a"), b"s" * 32)

    def decode(data: bytes) -> None:
        credentials.caller_of([("llmserve-caller", data.decode("latin-1"))])

    return decode, (NotAuthenticated,)


def _json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


_DEEP = b"[" * 6000


TARGETS: Mapping[str, FuzzTarget] = {
    "side-channel": FuzzTarget(_side_channel, (b"\x00\x81\xa4type\xa5Hello", b"\x80\x81\xa4type\xa7Welcome")),
    "ucx": FuzzTarget(_ucx, (b"LSUX\x01\x00\x00\x00\x00\x00\x00\x00\x00",)),
    "block-header": FuzzTarget(
        _block_header, (_json(shape="a", quantize="int8", planes=[["zstd", 4]], key="k", nonce="00"), _DEEP)
    ),
    "archive": FuzzTarget(
        _archive,
        (
            b"\x20" + _json(key="00", parent=None, tenant="a", parts=[[1, 2, ""]]) + b"E\x00\x00",
            b"\xff" + _DEEP,
        ),
    ),
    "pack-index": FuzzTarget(_pack_index, (bytes(64), b"LSKP" + bytes(60))),
    "removals": FuzzTarget(_removals, (_json(version=1, packs={"a/1.pack": [1, 2]}), _DEEP)),
    "safetensors": FuzzTarget(
        _safetensors,
        (_json(a={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, __metadata__={}), _DEEP),
    ),
    "http-body": FuzzTarget(
        _http_body,
        (_json(n=1, stop=["a"], prompt="a", messages=[{"content": [{"image_url": "http://a/"}]}]), _DEEP),
    ),
    "batch-lines": FuzzTarget(
        _batch_lines, (_json(custom_id="a", method="POST", url="/v1/completions", body={"model": "a"}), _DEEP)
    ),
    "credentials": FuzzTarget(_credentials, (b"router/router-0/00",)),
}
