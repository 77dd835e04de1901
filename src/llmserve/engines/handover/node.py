"""Everything a process needs to hand KV over and to fetch it: one io thread, a server, a client,
and the two ends of pushes."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from llmserve.core.clock import Clock, SystemClock
from llmserve.core.ids import WorkerId
from llmserve.engines.handover.client import HandoverClient
from llmserve.engines.handover.io import HandoverIo
from llmserve.engines.handover.layout import KvLayout
from llmserve.engines.handover.policy import TransferPolicy
from llmserve.engines.handover.pull import PullLimits
from llmserve.engines.handover.push.arrival import ReceiveLimits
from llmserve.engines.handover.push.receiver import PushReceiver
from llmserve.engines.handover.push.sender import PushSender
from llmserve.engines.handover.push.transfer import PushLimits
from llmserve.engines.handover.server import HandoverServer
from llmserve.engines.handover.status import TransferCounters
from llmserve.engines.handover.ticket import PeerAddress
from llmserve.transfer.base import Transport


class HandoverNode:
    """Owns the transports from the call on, also when it fails. One for each process and rank."""

    def __init__(
        self,
        *,
        worker_id: WorkerId,
        epoch: int,
        transports: Sequence[Transport],
        layout: KvLayout,
        lease_seconds: float,
        clock: Clock | None = None,
        host: str = "127.0.0.1",
        limits: PullLimits | None = None,
        policy: TransferPolicy | None = None,
        push_limits: PushLimits | None = None,
        receive_limits: ReceiveLimits | None = None,
        unusable: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """unusable: transports that cannot be used here, and why, for the status.
        Errors: TransferError (memory cannot be registered, host cannot be bound)."""
        self._io = HandoverIo(transports, layout, policy)
        self.client = HandoverClient(self._io, limits, unusable)
        try:
            self.server = HandoverServer(
                self._io, worker_id, epoch, lease_seconds, clock or SystemClock(), self.client, host
            )
        except BaseException:
            self._io.close()
            raise
        peers, trouble = self.client.peers, self.client.trouble
        self.sender = PushSender(self._io, peers, self.server, trouble, push_limits)
        home = PeerAddress(worker_id, epoch, self.server.endpoint)
        self.receiver = PushReceiver(self._io, self.client, home, self.server.hang_up, receive_limits)
        self.server.add({**self.sender.operations, **self.receiver.operations})

    @property
    def endpoint(self) -> str:
        """host:port of the side channel, for tickets."""
        return self.server.endpoint

    @property
    def transports(self) -> tuple[str, ...]:
        return tuple(self._io.transports)

    @property
    def counters(self) -> TransferCounters:
        """Of the pulls made here; only the hand-over thread writes them."""
        return self._io.counters

    def close(self) -> None:
        """Writing and pulls end, readers lose their connections, transports close, the thread is joined.
        Idempotent."""
        if self._io.closed:
            return
        self.sender.close()
        self.client.close()
        self.server.close()
        self._io.close()
