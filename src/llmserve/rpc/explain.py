"""Asks the router for the record of a request, which one of its apiservers has."""

from collections.abc import Sequence

from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.leader import ask_leader

_SECONDS = 8.0  # the router gives its apiservers 5 s


async def explain_request(routers: Sequence[str], request_id: str, tenant: str = "") -> bytes:
    """JSON. routers: HOST:PORT of each. tenant: whose it must be; empty: anybody's. Errors: NotFound,
    Unavailable."""
    question = router_pb2.RecordQuestion(request_id=request_id, tenant=tenant)
    request = router_pb2.ExplainRequest(record=question)
    answer = await ask_leader(routers, lambda stub: stub.Explain(request, timeout=_SECONDS))
    return bytes(answer.record)
