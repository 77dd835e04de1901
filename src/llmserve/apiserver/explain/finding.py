"""Finds the record of a request, here or at another apiserver."""

import json
from collections.abc import Sequence

from llmserve.apiserver.explain.records import Records
from llmserve.apiserver.explain.view import view
from llmserve.core.errors import NotFound
from llmserve.rpc.explain import explain_request
from llmserve.rpc.gen.llmserve.v1 import router_pb2


class Finder:
    """apiserver: the name of this one. routers: HOST:PORT of each; the one that leads asks the others."""

    def __init__(self, records: Records, apiserver: str, routers: Sequence[str]) -> None:
        self._records, self._apiserver, self._routers = records, apiserver, routers

    def here(self, question: router_pb2.RecordQuestion) -> bytes:
        """JSON. Errors: NotFound."""
        record = self._records.find(question.request_id, question.tenant)
        if record is None:
            raise NotFound(f"{self._apiserver} remembers no request {question.request_id}")
        return json.dumps(view(record, self._apiserver)).encode()

    async def anywhere(self, question: router_pb2.RecordQuestion) -> bytes:
        """JSON. Errors: NotFound, Unavailable."""
        try:
            return self.here(question)
        except NotFound:
            return await explain_request(self._routers, question.request_id, question.tenant)
