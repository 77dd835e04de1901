"""What the registered workers mean for requests that wait: limits, why no place came. Pure."""

from llmserve.core.errors import NoWorkerAvailable
from llmserve.router.placement.planner import Planner
from llmserve.router.workers.membership import ClusterMembership
from llmserve.scheduler.resources import Capacity

# Of a client that waited in vain for a worker: until one that was started again may be there.
_RETRY_AFTER_SECONDS = 10.0


class Availability:
    def __init__(self, membership: ClusterMembership, planner: Planner) -> None:
        self._membership, self._planner = membership, planner
        self._seen_version = membership.version

    def changed(self) -> bool:
        """Whether there are other workers than when this was last asked."""
        changed = self._seen_version != self._membership.version
        self._seen_version = self._membership.version
        return changed

    def capacity(self) -> Capacity:
        members = self._membership
        return Capacity(
            members.capacity(), members.kv_bytes_per_token(), members.hands_over(), members.widest_engine()
        )

    def lack(self, model: str) -> NoWorkerAvailable | None:
        """The error for a request of the model that is evicted; None: workers that it needs are there."""
        missing = self._planner.missing_roles(model)
        if not missing:
            return None
        text = f"no {' and no '.join(missing)} worker of model {model} is registered"
        return NoWorkerAvailable(text, retry_after_seconds=_RETRY_AFTER_SECONDS)
