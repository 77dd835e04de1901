"""Converts what processes tell each other about models: protobuf messages, and config/wanted_models.py."""

from collections.abc import Iterable

from llmserve.config.wanted_models import AnsweringModels, ModelOrder, ModelReport, ModelState, ServedName
from llmserve.core.errors import InvalidRequest
from llmserve.rpc.gen.llmserve.v1 import router_pb2

_REPORTED = (
    ModelState.FETCHING,
    ModelState.FETCHED,
    ModelState.STARTING,
    ModelState.READY,
    ModelState.FAILED,
)


def encode_served(models: Iterable[ServedName]) -> router_pb2.ServedModels:
    return router_pb2.ServedModels(
        models=[
            router_pb2.ServedModel(
                name=one.name,
                entry=one.entry,
                directory=one.directory,
                declared=one.declared,
                ready=one.ready,
            )
            for one in models
        ]
    )


def decode_served(message: router_pb2.ServedModels) -> tuple[ServedName, ...]:
    return tuple(
        ServedName(one.name, one.entry, one.directory, one.declared, one.ready) for one in message.models
    )


def encode_answering(models: AnsweringModels) -> router_pb2.AnsweringModels:
    return router_pb2.AnsweringModels(names=sorted(models.names), failed=models.failed)


def decode_answering(message: router_pb2.AnsweringModels) -> AnsweringModels:
    return AnsweringModels(frozenset(message.names), dict(message.failed))


def encode_model_order(order: ModelOrder) -> router_pb2.ModelOrder:
    return router_pb2.ModelOrder(
        number=order.number,
        name=order.name,
        entry=order.entry,
        declared=order.declared,
        may_start=order.may_start,
        swap=order.swap,
        pull=order.pull,
    )


def decode_model_order(message: router_pb2.ModelOrder) -> ModelOrder:
    return ModelOrder(
        message.number,
        message.name,
        message.entry,
        message.declared,
        message.may_start,
        message.swap,
        message.pull,
    )


def encode_model_report(report: ModelReport) -> router_pb2.ModelReport:
    return router_pb2.ModelReport(
        number=report.number,
        state=report.state,
        detail=report.detail,
        directory=report.directory,
        error=report.error,
        message=report.message,
    )


def decode_model_report(message: router_pb2.ModelReport) -> ModelReport:
    """Errors: InvalidRequest for a state that is not reported."""
    if message.state not in _REPORTED:
        raise InvalidRequest(f"a model cannot be reported as {message.state!r}")
    state = ModelState(message.state)
    return ModelReport(
        message.number, state, message.detail, message.directory, message.error, message.message
    )
