"""Keeps the matrix of a process: which transport to which peer, at what speed.

Peers are probed when they join (`meet`), or at the first connection to one that nobody announced; and again
when a breaker's pause is over. One probe at a time: they share the landing, and would disturb each other.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

from llmserve.core.errors import TransferError
from llmserve.core.kv_params import PeerAddress
from llmserve.core.request import PairStatus
from llmserve.engines.kv_transfer.io import HandoverIo
from llmserve.engines.kv_transfer.peers import Peer, PeerDirectory

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 5.0  # for a peer that cannot be reached


class Prober:
    """On the loop of its io; `start` once."""

    def __init__(self, io: HandoverIo, peers: PeerDirectory, unusable: Mapping[str, str]) -> None:
        """unusable: transports that this process has not, and why; they are rows of their own."""
        self._io = io
        self._unusable = unusable
        self._peers = peers
        self._announced: dict[str, PeerAddress] = {}
        self._refused: dict[str, str] = {}  # endpoint -> why there is no connection
        self._wake = peers.changed

    def start(self) -> None:
        self._io.spawn("prober", self._run())

    def set_peers(self, addresses: Sequence[PeerAddress]) -> None:
        """All peers that this process may fetch from; replaces those of the call before."""
        self._announced = {address.endpoint: address for address in addresses}
        self._refused = {key: why for key, why in self._refused.items() if key in self._announced}
        self._wake.set()

    def trouble(self, peer: Peer, transport: str, reason: str) -> None:
        """A transfer failed: opens the breaker."""
        peer.failed(transport, reason, time.monotonic())
        _log.warning("kv transfer from %s over %s failed: %s", peer.worker_id, transport, reason)
        self._wake.set()

    def rows(self) -> list[PairStatus]:
        now = time.monotonic()
        found = [row for peer in self._peers.live for row in peer.choice.rows(peer.worker_id, now)]
        for endpoint, why in self._refused.items():
            found.append(_out("refused", self._announced[endpoint].worker_id, "", why))
        return found + [_out("unavailable", "", name, why) for name, why in self._unusable.items()]

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            for address in list(self._announced.values()):
                await self._reach(address)
            for peer in self._peers.live:
                await self._probe_due(peer)
            await self._sleep()

    async def _reach(self, address: PeerAddress) -> None:
        try:
            await self._peers.get(address)
        except TransferError as error:
            if self._refused.get(address.endpoint) != error.message:
                _log.warning("no kv transfer from %s: %s", address.worker_id, error.message)
            self._refused[address.endpoint] = error.message
        else:
            self._refused.pop(address.endpoint, None)

    async def _probe_due(self, peer: Peer) -> None:
        for name in peer.choice.due(time.monotonic()):
            try:
                measured = await peer.probe(name)
            except TransferError as error:
                if not peer.lost.done():
                    self._probe_failed(peer, name, f"probe: {error.message}")
            else:
                peer.choice.probed(name, measured, time.monotonic())
                _log.info(
                    "kv probe of %s over %s: %.2f ms small, %.2f GB/s",
                    peer.worker_id,
                    name,
                    1e3 * measured.small_seconds,
                    measured.bytes_per_second / 1e9,
                )

    @staticmethod
    def _probe_failed(peer: Peer, name: str, reason: str) -> None:
        """Logged when it is news: a peer on another host stays there."""
        if peer.choice.reason(name) != reason:
            _log.warning("kv from %s over %s: %s", peer.worker_id, name, reason)
        peer.choice.failed(name, reason, time.monotonic())

    async def _sleep(self) -> None:
        """Until something changes, or the next probe is due."""
        now = time.monotonic()
        seconds = min((peer.choice.next_due() - now for peer in self._peers.live), default=float("inf"))
        if self._refused:
            seconds = min(seconds, _RETRY_SECONDS)
        try:
            async with asyncio.timeout(None if seconds == float("inf") else max(0.05, seconds)):
                await self._wake.wait()
        except TimeoutError:
            return


def _out(breaker: str, peer: str, transport: str, why: str) -> PairStatus:
    return PairStatus(peer, transport, False, breaker, why, 0.0, 0.0, 0, 0, 0.0, 0)
