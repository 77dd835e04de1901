"""Everything a process needs to hand KV over and to fetch it: one io thread, a server, a client,
and the two ends of pushes."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from llmserve.core.clock import Clock, SystemClock
from llmserve.core.ids import WorkerId
from llmserve.core.kv_params import PeerAddress
from llmserve.engines.kv_transfer.client import HandoverClient
from llmserve.engines.kv_transfer.io import HandoverIo
from llmserve.engines.kv_transfer.layout.blocks import KvLayout
from llmserve.engines.kv_transfer.policy import TransferPolicy
from llmserve.engines.kv_transfer.pull import PullLimits
from llmserve.engines.kv_transfer.push.receive import ReceiveLimits
from llmserve.engines.kv_transfer.push.receiver import PushReceiver
from llmserve.engines.kv_transfer.push.sender import PushSender
from llmserve.engines.kv_transfer.push.transfer import PushLimits
from llmserve.engines.kv_transfer.server import HandoverServer
from llmserve.engines.kv_transfer.status import TransferCounters
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
        """host:port of the side channel, for pull_params."""
        return self.server.endpoint

    @property
    def transports(self) -> tuple[str, ...]:
        return tuple(self._io.transports)

    @property
    def counters(self) -> TransferCounters:
        """Of the pulls made here; only the hand-over thread writes them."""
        return self._io.counters

    def wait_for_end(self, seconds: float) -> None:
        """Until some pull or push into this process has ended since the last call, at most so long."""
        self._io.ended.wait(seconds)
        self._io.ended.clear()

    def close(self) -> None:
        """Writing and pulls end, readers lose their connections, transports close, the thread is joined.
        Idempotent."""
        if self._io.closed:
            return
        self.sender.close()
        self.client.close()
        self.server.close()
        self._io.close()
