"""Everything a process needs to hand KV over and to fetch it: one engine thread, a server, a client,
and the two ends of pushes.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from llmserve.core.clock import Clock, SystemClock
from llmserve.core.ids import WorkerId
from llmserve.core.kv_params import PeerAddress
from llmserve.engines.kv_transfer.client import HandoverClient
from llmserve.engines.kv_transfer.layout.blocks import KvLayout
from llmserve.engines.kv_transfer.pull import PullLimits
from llmserve.engines.kv_transfer.push.receive import ReceiveLimits
from llmserve.engines.kv_transfer.push.receiver import PushReceiver
from llmserve.engines.kv_transfer.push.sender import PushSender
from llmserve.engines.kv_transfer.push.transfer import PushLimits
from llmserve.engines.kv_transfer.rank import RankEngine
from llmserve.engines.kv_transfer.server import HandoverServer
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.transfer.base import Transport
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.engine.counters import TransferCounters
from llmserve.transfer.engine.engine import SharedTransfers


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
        shared: SharedTransfers | None = None,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        """unusable: transports that cannot be used here, and why, for the status. shared: see TransferEngine.
        credentials: for its side channel.
        Errors: TransferError (memory cannot be registered, host cannot be bound)."""
        self._engine = RankEngine(transports, layout, policy, shared, credentials)
        self.client = HandoverClient(self._engine, limits, unusable)
        try:
            self.server = HandoverServer(
                self._engine, worker_id, epoch, lease_seconds, clock or SystemClock(), self.client, host
            )
        except BaseException:
            self._engine.close()
            raise
        self.sender = PushSender(self._engine, self.client.peers, self.server, push_limits)
        home = PeerAddress(worker_id, epoch, self.server.endpoint)
        self.receiver = PushReceiver(self._engine, self.client, home, self.server.hang_up, receive_limits)
        self.server.add({**self.sender.handlers, **self.receiver.handlers})

    @property
    def endpoint(self) -> str:
        """host:port of the side channel, for pull_params."""
        return self.server.endpoint

    @property
    def transports(self) -> tuple[str, ...]:
        return tuple(self._engine.transports)

    @property
    def counters(self) -> TransferCounters:
        """Counters of the pulls made here; only the engine's thread writes them."""
        return self._engine.counters

    @property
    def awaits_change(self) -> bool:
        """Says whether a pull or push into this process has to end, or a lease on its blocks."""
        return bool(self.client.active_count or self.receiver.active_count or self.server.leased_count)

    def on_change(self, action: Callable[[], object]) -> None:
        """Lets an action run, on any thread, when a pull or a push into this process, or a lease, has ended,
        but not when a lease expires. Replaces the action of the call before."""
        self._engine.on_change = action

    def wait_for_change(self, seconds: float) -> None:
        """Waits until a pull, a push or a lease has ended since the last call, at most `seconds`."""
        self._engine.changed.wait(seconds)
        self._engine.changed.clear()

    def close(self) -> None:
        """Writing and pulls end, readers lose their connections, transports close, the thread is joined.
        Idempotent."""
        if self._engine.closed:
            return
        self.sender.close()
        self.client.close()
        self.server.close()
        self._engine.close()
