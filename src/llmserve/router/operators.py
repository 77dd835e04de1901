"""What operators ask of the router, and the router of its apiservers."""

from collections.abc import Callable, Mapping

from llmserve.config.schema import Manifest
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.ids import ApiserverId
from llmserve.router.polls import Outcome, Polls, Send
from llmserve.router.reloads import Obey, Reloads
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.reload import encode_reloaded


class Operators:
    """apiservers: those with a session now. manifest None: the router was started without one."""

    def __init__(
        self, manifest: Manifest | None, apiservers: Callable[[], Mapping[ApiserverId, Send]], obey: Obey
    ) -> None:
        self._apiservers = apiservers
        self._polls = Polls()
        self._reloads = Reloads(manifest, self._ask, obey) if manifest else None

    async def reload(self, request: router_pb2.ReloadRequest) -> router_pb2.ReloadResponse:
        """Errors: as Reloads.reload; InvalidRequest without a manifest."""
        if self._reloads is None:
            raise InvalidRequest("this router runs without a manifest: there is nothing to reload")
        return encode_reloaded(await self._reloads.reload(request.text, request.file))

    async def explain(self, request: router_pb2.ExplainRequest) -> router_pb2.ExplainResponse:
        """Errors: NotFound."""
        outcome = await self._ask(router_pb2.Question(record=request.record))
        for answer in outcome.answers.values():
            if answer.record:
                return router_pb2.ExplainResponse(record=answer.record)
        raise NotFound(f"no apiserver remembers a request {request.record.request_id}")

    def came(self, send: Send) -> None:
        """An apiserver has a session from now on."""
        if self._reloads is not None and (news := self._reloads.news()) is not None:
            send(router_pb2.RouterSessionResponse(question=news))

    def answered(self, apiserver_id: ApiserverId, answer: router_pb2.Answer) -> None:
        self._polls.answered(apiserver_id, answer)

    def gone(self, apiserver_id: ApiserverId) -> None:
        self._polls.gone(apiserver_id)

    async def _ask(self, question: router_pb2.Question) -> Outcome:
        return await self._polls.ask(self._apiservers(), question)
