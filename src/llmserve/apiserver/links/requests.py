"""The requests that an apiserver has at the router: those that wait for a placement, and those that hold one.

It outlives every session, so that a router can be told again what is still true: which requests run, and
which ones wait.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from llmserve.core.errors import LLMServeError
from llmserve.core.request import Outcome, PrefillStats
from llmserve.rpc.codec import decode_outcome
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.status import error_named


class AdmissionRefused(Exception):
    """A request gets no placement. outcome: how it is counted. error: what the user gets."""

    def __init__(self, outcome: Outcome, error: LLMServeError) -> None:
        super().__init__(error.message)
        self.outcome, self.error = outcome, error


@dataclass(frozen=True, slots=True)
class PlacementEnd:
    """How a placement ended. output_tokens: those since it was given. prefilled: what its engine reported of
    the prompt. handover_seconds: from prefill's token to decode's first one. None: it is not known."""

    outcome: Outcome
    output_tokens: int
    prefilled: PrefillStats | None = None
    handover_seconds: float | None = None


@dataclass(slots=True)
class RoutedRequest:
    """It waits while placement is None. sent: a router was asked for it. output_tokens: those since the
    placement, as a router was told last."""

    admit: router_pb2.Admit
    answer: asyncio.Future[router_pb2.Placement]
    on_placed: Callable[[router_pb2.Placed], None]
    placement: router_pb2.Placement | None = field(default=None)
    sent: bool = False
    output_tokens: int = 0

    @property
    def has_key_limits(self) -> bool:
        return self.admit.HasField("key_limits")

    def ask(self) -> router_pb2.Admit:
        """Returns what a router is asked. One that is asked again does not charge the request's key again."""
        self.admit.again |= self.sent
        self.sent = True
        return self.admit

    def held(self, placement: router_pb2.Placement) -> router_pb2.HeldPlacement:
        return router_pb2.HeldPlacement(
            request_id=self.admit.request_id,
            tenant=self.admit.tenant,
            placement=placement,
            prompt_tokens=self.admit.prompt_tokens,
            max_output_tokens=self.admit.max_output_tokens,
            choices=self.admit.choices,
            adapter=self.admit.adapter,
            key_limits=self.admit.key_limits if self.has_key_limits else None,
            output_tokens=self.output_tokens,
        )


class RoutedRequests:
    """Messages about requests that have ended meanwhile are ignored."""

    def __init__(self) -> None:
        self._requests: dict[str, RoutedRequest] = {}

    def add(self, admit: router_pb2.Admit, on_placed: Callable[[router_pb2.Placed], None]) -> RoutedRequest:
        """on_placed: gets the router's whole answer before whoever waits for the placement."""
        request = RoutedRequest(admit, asyncio.get_running_loop().create_future(), on_placed)
        self._requests[admit.request_id] = request
        return request

    def waiting(self) -> Iterator[RoutedRequest]:
        return (request for request in self._requests.values() if request.placement is None)

    def held(self) -> Iterator[router_pb2.HeldPlacement]:
        """Yields the placements that requests hold."""
        for request in self._requests.values():
            if request.placement is not None:
                yield request.held(request.placement)

    def placed(self, placed: router_pb2.Placed) -> None:
        request = self._requests.get(placed.request_id)
        if request is not None and not request.answer.done():
            request.placement = placed.placement
            request.on_placed(placed)
            request.answer.set_result(placed.placement)

    def refused(self, refused: router_pb2.Refused) -> None:
        request = self._requests.pop(refused.request_id, None)
        if request is not None and not request.answer.done():
            retry = refused.retry_after_seconds or None
            error = error_named(refused.error, refused.message, retry)
            request.answer.set_exception(AdmissionRefused(decode_outcome(refused.outcome), error))

    def refuse_waiting(self, error: Callable[[], LLMServeError]) -> None:
        """Ends the wait of all requests that have no placement, each with an error of its own."""
        for request in list(self.waiting()):
            if not request.answer.done():
                del self._requests[request.admit.request_id]
                request.answer.set_exception(AdmissionRefused(Outcome.REJECTED, error()))

    def prefilled(self, request_id: str) -> None:
        """The prefill worker is free again; a restarted router must not count it."""
        request = self._requests.get(request_id)
        if request is not None and request.placement is not None:
            request.placement = router_pb2.Placement(decode=request.placement.decode)

    def progressed(self, request_id: str, output_tokens: int) -> None:
        """output_tokens: those since the placement. A router was told, and charges them."""
        if (request := self._requests.get(request_id)) is not None:
            request.output_tokens = output_tokens

    def end(self, request_id: str) -> RoutedRequest | None:
        """Returns the request that waited or held a placement; None: there is none."""
        return self._requests.pop(request_id, None)
