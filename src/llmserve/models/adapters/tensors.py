"""The tensors of a safetensors file, read from its header: names, types, shapes, and their bytes in pieces.

A file that somebody else made is checked before anything of it is believed: the header's length is bounded
before it is read, and the tensors fill the rest of the file without gaps.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmserve.core.errors import InvalidRequest
from llmserve.core.json_object import json_object

MOST_HEADER_BYTES = 16 << 20
_LENGTH_BYTES = 8
_PIECE_BYTES = 4 << 20
_METADATA = "__metadata__"
# Types of weights that adapters may have, and the bits in which NaN and infinity have ones only.
ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One tensor of a file. dtype: the format's word, such as BF16. start, end: bytes of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path, most_bytes: int = MOST_HEADER_BYTES) -> Mapping[str, TensorPlace]:
    """Reads the header, and none of the weights. Errors: InvalidRequest, naming file and tensor; OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        data = _data_start(file)
        if data > size:
            raise InvalidRequest(f"{path.name}: is not a safetensors file, or was cut off: {size} bytes")
        if data > most_bytes:
            raise InvalidRequest(f"{path.name}: its header has {data} bytes; at most {most_bytes} are read")
        header = _parsed(file.read(data - _LENGTH_BYTES), path.name)
    return {name: _place(name, entry, data, path.name) for name, entry in header.items() if name != _METADATA}


def check_extent(path: Path, tensors: Mapping[str, TensorPlace]) -> None:
    """Checks that the tensors follow each other up to the end of the file, each as long as its type and shape
    say. Errors: InvalidRequest; OSError."""
    in_order = sorted(tensors.values(), key=lambda one: (one.start, one.end))
    with path.open("rb") as file:
        at = _data_start(file)
    for one in in_order:
        item = ITEM_BYTES.get(one.dtype)
        if item is None:
            known = ", ".join(ITEM_BYTES)
            raise InvalidRequest(
                f"{path.name}: tensor '{one.name}' is of type {one.dtype}; known are {known}"
            )
        if one.start != at or one.end - one.start != item * math.prod(one.shape):
            raise InvalidRequest(
                f"{path.name}: tensor '{one.name}' of shape {list(one.shape)} cannot have the bytes "
                f"{one.start} to {one.end}"
            )
        at = one.end
    if at != (size := path.stat().st_size):
        raise InvalidRequest(f"{path.name}: was cut off, or is damaged: it has {size} bytes, not {at}")


def pieces(file: BinaryIO, tensor: TensorPlace) -> Iterator[memoryview]:
    """Yields the bytes of a tensor, whole items in each piece, which is valid until the next one. Errors:
    InvalidRequest when the file ends before; OSError."""
    file.seek(tensor.start)
    buffer = memoryview(bytearray(min(_PIECE_BYTES, tensor.end - tensor.start)))
    for at in range(tensor.start, tensor.end, _PIECE_BYTES):
        piece = buffer[: min(_PIECE_BYTES, tensor.end - at)]
        if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]  # files opened by path have it
            raise InvalidRequest(f"{file.name}: was cut off in tensor '{tensor.name}'")
        yield piece


def _data_start(file: BinaryIO) -> int:
    """The header follows its length."""
    return _LENGTH_BYTES + int.from_bytes(file.read(_LENGTH_BYTES), "little")


def _parsed(text: bytes, name: str) -> dict[str, Any]:
    try:
        return json_object(text)
    except ValueError as error:
        raise InvalidRequest(f"{name}: its header is {error}") from None


def _place(name: str, entry: Any, data: int, file: str) -> TensorPlace:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if (
            0 <= start <= end and all(type(size) is int and size >= 0 for size in shape)
        ):
            return TensorPlace(name, dtype, tuple(shape), data + start, data + end)
    raise InvalidRequest(f"{file}: tensor '{name}' has no right type, shape and place in the header")
