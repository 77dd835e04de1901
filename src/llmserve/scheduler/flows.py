"""All that waits: by request, by tenant, and by deadline."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from itertools import count

from llmserve.core.deadlines import Deadlines
from llmserve.core.ids import AdapterDigest, RequestId, TenantId
from llmserve.scheduler.request import QueuedRequest, WaitingRequest


class TenantFlow:
    """The waiting requests of one tenant, sorted by their order of service."""

    def __init__(self, tenant: TenantId) -> None:
        self.tenant = tenant
        self._sorted: list[WaitingRequest] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def __getitem__(self, index: int) -> WaitingRequest:
        return self._sorted[index]

    def __repr__(self) -> str:
        return f"<Flow {self.tenant} waiting={len(self)}>"

    def add(self, waiting: WaitingRequest) -> None:
        insort(self._sorted, waiting)

    def remove(self, waiting: WaitingRequest) -> None:
        index = bisect_left(self._sorted, waiting)
        assert self._sorted[index] is waiting
        del self._sorted[index]


# Requests of one tenant that have no place now, and requests that let others go first, which are passed over
# for its later ones in one round.
_MOST_BLOCKED, _MOST_DEFERRED = 32, 256


class FlowRound:
    """One round of dispatch in a flow: which request is asked next. Those that were deferred are asked again
    when the others were asked: first the adapter with the most of them, because they share its slot."""

    def __init__(self, flow: TenantFlow) -> None:
        self._flow = flow
        self._passed_over = self._blocked = 0  # the first ones of the flow; those without a place
        self.lacks_slot = False  # one of the requests that were asked waits for an adapter slot
        self._deferred: dict[int, WaitingRequest] = {}  # by sequence
        self._asking: dict[AdapterDigest, int] = {}  # deferred ones of each adapter, since the beginning

    def next(self) -> WaitingRequest | None:
        """None: the tenant has no request left to ask in this round."""
        if self._blocked >= _MOST_BLOCKED:
            return None
        if self._passed_over < len(self._flow) and len(self._deferred) < _MOST_DEFERRED:
            return self._flow[self._passed_over]
        if not self._deferred:
            return None
        return max(self._deferred.values(), key=lambda waiting: self._asking[waiting.request.adapter])

    def placed(self, waiting: WaitingRequest) -> None:
        """It has left the flow."""
        if self._deferred.pop(waiting.sequence, None):
            self._passed_over -= 1

    def deferred(self, waiting: WaitingRequest) -> None:
        self._passed_over += 1
        self._deferred[waiting.sequence] = waiting
        adapter = waiting.request.adapter
        self._asking[adapter] = self._asking.get(adapter, 0) + 1

    def blocked(self, waiting: WaitingRequest, *, lacks_slot: bool = False) -> None:
        """It has no place now. lacks_slot: for want of an adapter slot."""
        self._blocked += 1
        self.lacks_slot |= lacks_slot
        if not self._deferred.pop(waiting.sequence, None):
            self._passed_over += 1


class Flows:
    """Each waiting request is in its tenant's flow; a tenant without waiting requests has no flow. `add`
    and `remove` return whether the tenant has come or gone."""

    def __init__(self) -> None:
        self._flows: dict[TenantId, TenantFlow] = {}
        self._waiting: dict[RequestId, WaitingRequest] = {}
        self._deadlines: Deadlines[RequestId] = Deadlines()
        self._sequence = count()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[WaitingRequest]:
        """Yields requests in the order of arrival."""
        return iter(self._waiting.values())

    def __getitem__(self, tenant: TenantId) -> TenantFlow:
        return self._flows[tenant]

    def get(self, request_id: RequestId) -> WaitingRequest | None:
        return self._waiting.get(request_id)

    def of_tenant(self, tenant: TenantId) -> int:
        """Number of waiting requests of the tenant."""
        return len(self._flows.get(tenant, ()))

    # -- in and out

    def add(self, request: QueuedRequest, key: float) -> bool:
        """key: position within the tenant; the least is first. True: the tenant has come."""
        assert request.request_id not in self._waiting, request
        waiting = WaitingRequest(key, next(self._sequence), request)
        self._waiting[request.request_id] = waiting
        self._deadlines.put(request.request_id, request.deadline)
        has_come = request.tenant not in self._flows
        if has_come:
            self._flows[request.tenant] = TenantFlow(request.tenant)
        self._flows[request.tenant].add(waiting)
        return has_come

    def remove(self, waiting: WaitingRequest) -> bool:
        """True: the tenant has gone."""
        request = waiting.request
        del self._waiting[request.request_id]
        self._deadlines.drop(request.request_id)
        flow = self._flows[request.tenant]
        flow.remove(waiting)
        if not flow:
            del self._flows[request.tenant]
        return not flow

    # -- deadlines

    def due(self, now: float) -> list[WaitingRequest]:
        """Returns the requests whose deadline has come, each once."""
        return [self._waiting[request_id] for request_id in self._deadlines.take_due(now)]

    def next_deadline(self) -> float | None:
        """None while nothing waits."""
        return self._deadlines.next()

    # -- shares of the queue

    def weight_with(self, tenant: TenantId, weight: Callable[[TenantId], float]) -> float:
        """Weight of all waiting tenants and of this one."""
        return sum(map(weight, {*self._flows, tenant}))

    def over_its_share(self, tenant: TenantId, weight: Callable[[TenantId], float]) -> WaitingRequest | None:
        """The last request of the tenant that has the most of the queue for its weight; None when
        `tenant` with one more request would have no less."""
        if not self._flows:
            return None
        most = max(self._flows.values(), key=lambda flow: len(flow) / weight(flow.tenant))
        mine = self.of_tenant(tenant) + 1
        if len(most) / weight(most.tenant) <= mine / weight(tenant):
            return None
        return most[len(most) - 1]

    def tenants(self) -> set[TenantId]:
        return set(self._flows)

    def check_integrity(self) -> None:
        """Raises AssertionError when a request is in no flow, in two, or has no deadline."""
        in_flows = [
            flow[index].request.request_id for flow in self._flows.values() for index in range(len(flow))
        ]
        assert sorted(in_flows) == sorted(self._waiting), self._flows
        assert all(len(flow) for flow in self._flows.values()), "an empty flow is kept"
        self._deadlines.check_integrity(set(self._waiting))
