"""What processes write of themselves for their peers (`Transport.describe`), parsed once: typed fields within
bounds."""

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from llmserve.core.errors import TransferError

_LARGEST = (1 << 63) - 1  # of what numpy and the kernel count by
Count = Annotated[int, Meta(ge=0, le=_LARGEST)]
F = TypeVar("F", bound=msgspec.Struct)


def parse_fields(kind: type[F], text: bytes, transport: str) -> F:
    """text: JSON. Errors: TransferError for what has not these fields."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(transport, error) from error


def malformed(transport: str, error: Exception) -> TransferError:
    return TransferError(f"{transport}: malformed description: {error!r}")
