"""The error table: every class of the tree crosses the wire as itself."""

import inspect

import grpc
import pytest

from llmserve.core import errors
from llmserve.rpc.status import code_of, error_named, from_grpc, trailing_metadata

CLASSES = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.LLMServeError)
]


def _crossed(error: errors.LLMServeError) -> errors.LLMServeError:
    rpc_error = grpc.aio.AioRpcError(
        code_of(error),
        grpc.aio.Metadata(),
        grpc.aio.Metadata(*trailing_metadata(error)),
        error.message,
        None,
    )
    return from_grpc(rpc_error)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_crosses_as_itself(cls: type[errors.LLMServeError]) -> None:
    back = _crossed(cls("what and where", retry_after_seconds=1.5))
    assert type(back) is cls
    assert back.message == "what and where"
    assert back.retry_after_seconds == 1.5


def test_a_foreign_status_maps_by_its_code() -> None:
    metadata = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, metadata, metadata, "connection refused", None)
    assert type(from_grpc(error)) is errors.Unavailable


@pytest.mark.parametrize("name", ["NoSuchError", "ClassVar", ""])
def test_an_unknown_name_gives_the_root(name: str) -> None:
    assert type(error_named(name, "m")) is errors.LLMServeError
