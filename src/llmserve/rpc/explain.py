"""Asks the router for the record of a request, which one of its apiservers has."""

import grpc.aio

from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.rpc.status import from_grpc

_SECONDS = 8.0  # the router gives its apiservers 5 s


async def explain_request(router: str, request_id: str, tenant: str = "") -> bytes:
    """JSON. router: HOST:PORT. tenant: whose it must be; empty: anybody's. Errors: NotFound, Unavailable."""
    question = router_pb2.RecordQuestion(request_id=request_id, tenant=tenant)
    async with open_channel(router) as channel:
        stub = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]  # generated
        try:
            answer = await stub.Explain(router_pb2.ExplainRequest(record=question), timeout=_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error) from error
    return bytes(answer.record)
