"""Whether requests can be served right now."""

from collections.abc import Sequence
from typing import Protocol

from llmserve.core.outcome import WorkerRole
from llmserve.rpc.codec import decode_role
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo


class Cluster(Protocol):
    """What is known of the cluster; RouterLink is one."""

    @property
    def connected(self) -> bool: ...
    @property
    def workers(self) -> Sequence[WorkerInfo]: ...


class Readiness:
    def __init__(self, cluster: Cluster, disaggregated: bool) -> None:
        self._cluster, self._disaggregated = cluster, disaggregated

    def missing(self) -> str:
        """What is away, in words; empty when requests can be served."""
        if not self._cluster.connected:
            return "no session with the router"
        roles = {decode_role(worker.role) for worker in self._cluster.workers}
        if WorkerRole.AGGREGATED in roles:
            return ""
        needed = (WorkerRole.PREFILL, WorkerRole.DECODE) if self._disaggregated else (WorkerRole.AGGREGATED,)
        away = [role.value for role in needed if role not in roles]
        return f"no {' and no '.join(away)} worker is available" if away else ""
