"""What the registered workers mean for requests that wait: limits, deadlines, why no place came. Pure."""

from llmserve.core.errors import NoWorkerAvailable
from llmserve.router.membership import Membership
from llmserve.scheduler.request import QueuedRequest
from llmserve.scheduler.resources import Capacity


class Supply:
    """grace_seconds: how long a request waits while a role it needs has no worker at all."""

    def __init__(self, membership: Membership, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self._membership = membership
        self._seen_version = membership.version

    def changed(self) -> bool:
        """Whether there are other workers than when this was last asked."""
        changed = self._seen_version != self._membership.version
        self._seen_version = self._membership.version
        return changed

    def capacity(self) -> Capacity:
        members = self._membership
        return Capacity(
            members.decode_capacity(),
            members.kv_bytes_per_token(),
            members.hands_over(),
            members.widest_engine(),
        )

    def serves(self, model: str) -> bool:
        return self._membership.serves(model)

    def deadline(self, request: QueuedRequest, model: str) -> float:
        """Sooner than the request's own while a role that it needs has no worker at all."""
        if self.serves(model):
            return request.deadline
        gone_since = max(request.arrived_at, self._membership.unserved_since(model))
        return min(request.deadline, gone_since + self.grace_seconds)

    def lack(self, model: str) -> NoWorkerAvailable | None:
        """The error for a request of the model that is evicted; None: it has workers of all roles."""
        missing = self._membership.missing_roles(model)
        if not missing:
            return None
        text = f"no {' and no '.join(missing)} worker of model {model} is registered"
        return NoWorkerAvailable(text, retry_after_seconds=self.grace_seconds)
