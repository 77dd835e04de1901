"""Answers the calls by which operators load, unload and list models, and by which whoever runs the processes
follows the book."""

import asyncio
from contextlib import suppress

from llmserve.config.schema import Manifest, ServedModel
from llmserve.config.wanted_models import check_code, entry_of, manifest_with, parse_entry
from llmserve.core.errors import InvalidRequest
from llmserve.router.event_loop import EventLoop
from llmserve.router.leader.election import LeaderCheck
from llmserve.router.models.book import ModelBook
from llmserve.router.models.registration import ModelRegistration
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.models import decode_model_report, encode_model_order

# Who runs the processes asks again at least so often, so that nobody is followed who is gone.
HOLD_SECONDS = 10.0


class ModelCalls:
    """Each call raises NotLeader on a standby, and when the term ends while it waits. manifest: that of this
    router; None: it has none, and loads nothing."""

    def __init__(
        self, book: ModelBook, event_loop: EventLoop, leader_check: LeaderCheck, manifest: Manifest | None
    ) -> None:
        self._book, self._event_loop, self._leader_check = book, event_loop, leader_check
        self._manifest = manifest

    def load(self, request: router_pb2.LoadModelRequest) -> router_pb2.ModelStatus:
        """Errors: as ModelBook.load; InvalidRequest for an entry that is wrong, or cannot be beside the
        models that are there."""
        model = parse_entry(request.entry)
        with self._event_loop.deciding():
            if self._book.manages:
                self._check(model, request.swap)
            registration = self._book.load(
                model.served_name, entry_of(model), request.swap, pull=request.pull
            )
        return self._status(registration)

    def unload(self, request: router_pb2.UnloadModelRequest) -> router_pb2.ModelStatus:
        """Errors: as ModelBook.unload."""
        with self._event_loop.deciding():
            registration = self._book.unload(request.name)
        return self._status(registration)

    def list(self) -> router_pb2.ListModelsResponse:
        """Returns all that are not gone."""
        self._leader_check.check()
        return router_pb2.ListModelsResponse(models=map(self._status, self._book))

    async def follow(self, request: router_pb2.FollowModelsRequest) -> router_pb2.FollowModelsResponse:
        """Answers when the orders are other ones than those of this version, or after a while. Errors:
        InvalidRequest for a report that is none."""
        reports = [decode_model_report(report) for report in request.reports]
        with self._event_loop.deciding():
            self._book.heard(reports)
        with suppress(TimeoutError):
            async with asyncio.timeout(HOLD_SECONDS):
                await self._event_loop.model_watch.calls.until(lambda: self._book.version != request.version)
        orders = map(encode_model_order, self._book.orders())
        return router_pb2.FollowModelsResponse(version=self._book.version, orders=orders)

    # -- parts

    def _check(self, model: ServedModel, swap: str) -> None:
        if self._manifest is None:
            raise InvalidRequest("this router runs without a manifest: it cannot load models")
        check_code(model, self._manifest)
        others = [
            ServedModel.model_validate_json(one.entry)
            for one in self._book
            if one.wanted and one.name not in (swap, model.served_name)
        ]
        manifest_with(self._manifest, [*others, model])

    def _status(self, one: ModelRegistration) -> router_pb2.ModelStatus:
        return router_pb2.ModelStatus(
            number=one.number,
            name=one.name,
            source=one.source,
            state=one.state,
            detail=one.detail,
            error=one.error,
            message=one.message,
            declared=one.declared,
            swap=one.swap,
            requests=self._book.users(one.name),
        )
