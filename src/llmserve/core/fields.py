"""Reads fields of kv_transfer_params and of side channel messages, which come from outside.

Errors of every function: TransferError naming the field.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard

from llmserve.core.errors import TransferError

_MAX_INTEGER = (1 << 63) - 1
_MAX_BLOCKS = 1 << 20
_MAX_RANKS = 1024


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """ "host:port" in two; IPv6 hosts may stand in brackets."""
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise TransferError(f"not an endpoint of the form host:port: {endpoint!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


@contextmanager
def fields_of(source: str) -> Iterator[None]:
    """Errors that come out of it say where the fields are from."""
    try:
        yield
    except TransferError as error:
        raise TransferError(f"{source}: {error.message}") from error


def wrong(name: str, why: str) -> TransferError:
    return TransferError(f"{name}: {why}")


def text_of(fields: Mapping[str, Any], name: str, least: int = 1) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not least <= len(value) <= 1024:
        raise wrong(name, f"must be text of {least} to 1024 characters")
    return value


def integer_of(fields: Mapping[str, Any], name: str, least: int, most: int = _MAX_INTEGER) -> int:
    value = fields.get(name)
    if not _is_int(value) or not least <= value <= most:
        upwards = "on" if most == _MAX_INTEGER else f"to {most}"
        raise wrong(name, f"must be an integer from {least} {upwards}")
    return value


def flag_of(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, bool):
        raise wrong(name, "must be true or false")
    return value


def seconds_of(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1e9:
        raise wrong(name, "must be a number of seconds")
    return float(value)


def endpoint_of(fields: Mapping[str, Any], name: str) -> str:
    endpoint = text_of(fields, name)
    try:
        split_endpoint(endpoint)
    except TransferError as error:
        raise wrong(name, error.message) from error
    return endpoint


def endpoints_of(fields: Mapping[str, Any], name: str = "endpoints") -> tuple[str, ...]:
    value = fields.get(name)
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= _MAX_RANKS:
        raise wrong(name, f"must be a list of 1 to {_MAX_RANKS}")
    for endpoint in value:
        if not isinstance(endpoint, str):
            raise wrong(name, "must hold text only")
        endpoint_of({name: endpoint}, name)
    return tuple(value)


def integers_of(
    fields: Mapping[str, Any], name: str, least: int = 1, most: int = _MAX_BLOCKS
) -> tuple[int, ...]:
    """A list of `least` to `most` numbers that fit into 31 bits: block ids, token ids."""
    value = fields.get(name)
    if not isinstance(value, (list, tuple)) or not least <= len(value) <= most:
        raise wrong(name, f"must be a list of {least} to {most}")
    if not all(_is_int(item) and 0 <= item < 1 << 31 for item in value):
        raise wrong(name, "must hold integers from 0 to 2147483647 only")
    return tuple(value)


def texts_of(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name)
    if not isinstance(value, (list, tuple)) or len(value) > _MAX_RANKS:
        raise wrong(name, f"must be a list of at most {_MAX_RANKS}")
    if not all(isinstance(item, str) for item in value):
        raise wrong(name, "must hold text only")
    return tuple(value)


def object_of(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """May be empty, or left out."""
    value = fields.get(name, {})
    if not isinstance(value, Mapping):
        raise wrong(name, "must be an object")
    return value


def objects_of(fields: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], ...]:
    """A list, which may be empty."""
    value = fields.get(name)
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) for item in value):
        raise wrong(name, "must be a list of objects")
    return tuple(value)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
