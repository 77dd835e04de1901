"""`GET /v1/requests/{id}/explain`."""

from fastapi import FastAPI
from fastapi.responses import Response

from llmserve.apiserver.explain.finding import Finder
from llmserve.apiserver.request_scope import current_scope
from llmserve.rpc.gen.llmserve.v1 import router_pb2


def add_explain(app: FastAPI, finder: Finder) -> None:
    @app.get("/v1/requests/{request_id}/explain")
    async def explain(request_id: str) -> Response:
        """The record of a request of the caller's own, or for an admin of anybody's. 404 for any other."""
        scope = current_scope()
        tenant = "" if scope.admin else scope.tenant
        question = router_pb2.RecordQuestion(request_id=request_id, tenant=tenant)
        return Response(await finder.anywhere(question), media_type="application/json")
