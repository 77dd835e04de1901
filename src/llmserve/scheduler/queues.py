"""The queues of all models as one. Each model has a queue of its own, so that one without places, its long
queue or its tenants' turns never delay another; only the budgets are for all."""

from collections.abc import Callable, Iterator

from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.admission import AdmissionQueue
from llmserve.scheduler.request import (
    Dispatched,
    EvictedRequest,
    Place,
    Queued,
    QueuedRequest,
    QueueReport,
    Rejected,
    has_place,
)
from llmserve.scheduler.resources import BudgetSet


class ModelQueues:
    """One for the cluster; called as AdmissionQueue is. make: makes the queue of a model. held_of_share: how
    much of its share of the budgets a model holds: the one with the least is asked first."""

    def __init__(
        self,
        make: Callable[[str], AdmissionQueue],
        budgets: BudgetSet,
        held_of_share: Callable[[str], float],
    ) -> None:
        self._make, self._budgets, self._held_of_share = make, budgets, held_of_share
        self._queues: dict[str, AdmissionQueue] = {}

    def __repr__(self) -> str:
        return f"<ModelQueues {self._queues}>"

    def __iter__(self) -> Iterator[AdmissionQueue]:
        return iter(self._queues.values())

    @property
    def waiting_requests(self) -> int:
        return sum([queue.waiting_requests for queue in self._queues.values()])

    @property
    def running_requests(self) -> int:
        return sum(queue.running_requests for queue in self)

    def waiting(self) -> Iterator[QueuedRequest]:
        """Yields all waiting requests, those of each model in the order of arrival."""
        return (request for queue in self for request in queue.waiting())

    def models_in_want(self) -> frozenset[str]:
        """The models whose waiting requests could use room in the budgets."""
        return frozenset(model for model, queue in self._queues.items() if queue.wants_budget)

    def of(self, model: str) -> AdmissionQueue:
        """Returns the queue of a model, which is made at its first use."""
        return self._queues.get(model) or self._queues.setdefault(model, self._make(model))

    # -- in

    def offer(self, request: QueuedRequest, place: Place) -> Dispatched | Queued | Rejected:
        return self.of(request.model).offer(request, place)

    def adopt(self, request: QueuedRequest, output_tokens: int = 0) -> None:
        self.of(request.model).adopt(request, output_tokens)

    # -- on

    def dispatch(self, place: Place, probe: Place = has_place) -> list[QueuedRequest]:
        """A budget that is full whatever the model ends the round of all of them. When a model wants no more
        of the budgets, the others have all of them, and another round. probe: see AdmissionQueue."""
        if len(self._queues) == 1:  # it shares the budgets with nobody
            (only,) = self
            return only.dispatch(place, probe)
        dispatched: list[QueuedRequest] = []
        wanted = self.models_in_want()
        while True:
            dispatched += self._round(place, probe)
            want = self.models_in_want()
            if want >= wanted or not want:
                return dispatched
            wanted &= want  # fewer in each round, so that the rounds end

    def correct(self, request_id: RequestId, output_tokens: int) -> None:
        for queue in self:
            queue.correct(request_id, output_tokens)

    # -- out

    def release(self, request_id: RequestId, output_tokens: int = 0) -> bool:
        for queue in self:
            if (request := queue.release(request_id, output_tokens)) is not None:
                self._tenant_released(request.tenant)
                return True
        return False

    def withdraw(self, request_id: RequestId) -> bool:
        return any(queue.withdraw(request_id) for queue in self)

    def expire(self) -> list[EvictedRequest]:
        return [evicted for queue in self for evicted in queue.expire()]

    def limits_changed(self) -> list[EvictedRequest]:
        return [evicted for queue in self for evicted in queue.limits_changed()]

    def next_deadline(self) -> float | None:
        return _earliest(queue.next_deadline() for queue in self)

    def next_turn(self) -> float | None:
        return _earliest(queue.next_turn() for queue in self)

    # -- about

    def report(self, request: QueuedRequest) -> QueueReport:
        return self.of(request.model).report(request)

    def retry_after_seconds(self, request: QueuedRequest) -> float:
        return self.of(request.model).retry_after_seconds(request)

    def check_integrity(self) -> None:
        for queue in self:
            queue.check_integrity()
        self._budgets.check_integrity({request_id for queue in self for request_id in queue.running_ids})

    # -- parts

    def _tenant_released(self, tenant: TenantId) -> None:
        for queue in self:
            queue.tenant_released(tenant)

    def _round(self, place: Place, probe: Place) -> list[QueuedRequest]:
        dispatched: list[QueuedRequest] = []
        held_up_by = ""
        for model in sorted(self._queues, key=self._place_in_round):
            queue = self._queues[model]
            if held_up_by:
                queue.held_up_by(held_up_by)
                continue
            dispatched += queue.dispatch(place, probe)
            held_up_by = queue.ended_by if queue.holds_up_all else ""
        return dispatched

    def _place_in_round(self, model: str) -> tuple[float, bool]:
        """Among equal models, the one that all others waited for comes first."""
        return self._held_of_share(model), not self._queues[model].holds_up_all


def _earliest(times: Iterator[float | None]) -> float | None:
    return min((time for time in times if time is not None), default=None)
