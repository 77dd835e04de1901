"""Headers of safetensors files that somebody else made."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmserve.core.errors import InvalidRequest
from llmserve.models.adapters.tensors import check_extent, pieces, read_header

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(tmp_path: Path, header: Any, data: bytes = bytes(8), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check_extent(path, read_header(path, 1000))
    assert caught.value.message.startswith("x.safetensors: ")
    return caught.value.message


def test_a_tensor_is_found_and_read_in_whole_items(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": ENTRY, "__metadata__": {"format": "pt"}}, data=b"01234567")
    (tensor,) = read_header(path).values()
    check_extent(path, {"a": tensor})
    assert (tensor.name, tensor.dtype, tensor.shape) == ("a", "F32", (2,))
    with path.open("rb") as file:
        assert b"".join(map(bytes, pieces(file, tensor))) == b"01234567"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"{", "its header is not JSON"),
        (b"[" * 900, "its header is not"),
        (b"[]", "its header is not a JSON object"),
        ({"a": ENTRY, "b" * 1000: ENTRY}, "at most 1000 are read"),
        ({"a": ENTRY | {"dtype": 3}}, "'a' has no right type, shape and place"),
        ({"a": ENTRY | {"shape": [-2]}}, "'a' has no right type, shape and place"),
        ({"a": ENTRY | {"shape": [True]}}, "'a' has no right type, shape and place"),
        ({"a": ENTRY | {"data_offsets": [8, 0]}}, "'a' has no right type, shape and place"),
        ({"a": ENTRY | {"data_offsets": [-8, 0]}}, "'a' has no right type, shape and place"),
        ({"a": ENTRY | {"data_offsets": [0]}}, "'a' has no right type, shape and place"),
        ({"a": 3}, "'a' has no right type, shape and place"),
        ({"a": ENTRY | {"shape": [1 << 40]}}, "'a' of shape [1099511627776] cannot have the bytes"),
        ({"a": ENTRY, "b": ENTRY}, "'b' of shape [2] cannot have the bytes"),
        ({"a": ENTRY | {"data_offsets": [0, 4], "shape": [1]}}, "was cut off, or is damaged"),
        ({"a": ENTRY | {"dtype": "I8"}}, "'a' is of type I8"),
    ],
)
def test_a_header_that_is_wrong_is_refused(tmp_path: Path, header: Any, said: str) -> None:
    assert said in refusal(written(tmp_path, header))


def test_a_gap_before_the_first_tensor_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": ENTRY | {"data_offsets": [4, 12]}}, data=bytes(12))
    assert "'a' of shape [2] cannot have the bytes" in refusal(path)


@pytest.mark.parametrize("length", [1 << 62, 10_000])
def test_the_length_of_the_header_is_bounded_before_it_is_read(tmp_path: Path, length: int) -> None:
    assert "is not a safetensors file, or was cut off" in refusal(written(tmp_path, {}, length=length))


def test_a_file_without_a_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"1234")
    assert "is not a safetensors file" in refusal(path)


def test_a_file_that_gets_shorter_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": ENTRY})
    (tensor,) = read_header(path).values()
    path.write_bytes(path.read_bytes()[:-1])
    with path.open("rb") as file, pytest.raises(InvalidRequest, match="cut off in tensor 'a'"):
        list(pieces(file, tensor))
