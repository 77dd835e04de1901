"""The links to all workers: made on first use, dropped when broken or no longer needed."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llmserve.apiserver.worker_link import Leg, WorkerLink
from llmserve.core.errors import LLMServeError
from llmserve.core.request import EngineRequest
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.rpc.codec import encode_params
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo

_log = logging.getLogger(__name__)

_Incarnation = tuple[str, int]  # worker_id, epoch


class WorkerLinks:
    def __init__(self, metrics: ApiserverMetrics) -> None:
        self._metrics = metrics
        self._owner = TaskOwner("worker-links")
        self._links: dict[_Incarnation, WorkerLink] = {}
        self._members: frozenset[_Incarnation] = frozenset()

    def __len__(self) -> int:
        return len(self._links)

    def open(self, worker: WorkerInfo, request: EngineRequest) -> Leg:
        """Starts a request on a worker. Errors: WorkerLost."""
        return self._link(worker).open(request)

    def release(self, worker: WorkerInfo, ticket: Mapping[str, Any], traceparent: str = "") -> None:
        """Gives a lease back in the background: whoever asks may be in the middle of being cancelled."""
        self._owner.spawn("release", self._release(worker, ticket, traceparent))

    async def _release(self, worker: WorkerInfo, ticket: Mapping[str, Any], traceparent: str) -> None:
        try:
            released = await self._link(worker).release(encode_params(ticket), traceparent)
            self._metrics.lease_releases_total.labels("released" if released else "ended").inc()
        except LLMServeError as error:
            self._metrics.lease_releases_total.labels("failed").inc()
            _log.warning("lease on %s not released, it will expire: %s", worker.worker_id, error)

    def retain(self, members: Sequence[WorkerInfo]) -> None:
        """Tells who is in the cluster. Idle links to others are closed; busy ones may finish: a worker
        that leaves in order runs its requests to their end, and a dead one breaks its link."""
        self._members = frozenset(map(_incarnation, members))
        for key, link in list(self._links.items()):
            if key not in self._members and len(link) == 0:
                del self._links[key]
                self._owner.spawn("close link", link.aclose())
        self._metrics.worker_links.set(len(self._links))

    def _link(self, worker: WorkerInfo) -> WorkerLink:
        key = _incarnation(worker)
        if key not in self._links:
            self._links[key] = WorkerLink(worker, self._owner, self._forget)
            self._metrics.worker_links.set(len(self._links))
        return self._links[key]

    def _forget(self, link: WorkerLink) -> None:
        key = _incarnation(link.info)
        if self._links.get(key) is link:
            del self._links[key]
        self._metrics.worker_links.set(len(self._links))

    async def aclose(self) -> None:
        """Releases under way get no more time: their leases expire. Idempotent."""
        links, self._links = list(self._links.values()), {}
        for link in links:
            await link.aclose()
        await self._owner.aclose()


def _incarnation(worker: WorkerInfo) -> _Incarnation:
    return (worker.worker_id, worker.epoch)
