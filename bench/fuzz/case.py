"""A decoder, as the fuzzer sees it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

DEEP = b"[" * 6000


@dataclass(frozen=True, slots=True)
class FuzzCase:
    """expected: the errors that the decoder may raise. seeds: valid inputs, from which the search begins."""

    decode: Callable[[bytes], Any]
    expected: tuple[type[Exception], ...]
    seeds: Sequence[bytes]


def as_json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()
