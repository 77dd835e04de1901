"""Keeps the matrix of a process: which transport to which peer, at what speed.

Peers are probed when they join (`set_peers`), at the first connection to a peer that nobody announced, and
when the pause of a breaker is over.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence

from llmserve.core.errors import TransferError
from llmserve.core.kv_params import PeerAddress
from llmserve.core.request import PairStatus
from llmserve.engines.kv_transfer.peers import PeerDirectory
from llmserve.engines.kv_transfer.rank import RankEngine

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 5.0  # between two attempts to connect to a peer that cannot be reached
_SHORTEST_SECONDS = 0.05


class Prober:
    """On the loop of its engine; `start` once."""

    def __init__(self, engine: RankEngine, peers: PeerDirectory, unusable: Mapping[str, str]) -> None:
        """unusable: transports that this process does not have, with the reason; each is a row of its own."""
        self._engine = engine
        self._unusable = unusable
        self._peers = peers
        self._announced: dict[str, PeerAddress] = {}
        self._refused: dict[str, str] = {}  # endpoint -> why there is no connection

    def start(self) -> None:
        self._engine.spawn("prober", self._run())

    def set_peers(self, addresses: Sequence[PeerAddress]) -> None:
        """Names all peers that this process may fetch from; replaces those of the call before."""
        self._announced = {address.endpoint: address for address in addresses}
        self._refused = {key: why for key, why in self._refused.items() if key in self._announced}
        self._peers.changed.set()

    def rows(self) -> list[PairStatus]:
        found = self._engine.matrix.rows()
        for endpoint, why in self._refused.items():
            found.append(_row("refused", self._announced[endpoint].worker_id, "", why))
        return found + [_row("unavailable", "", name, why) for name, why in self._unusable.items()]

    async def _run(self) -> None:
        while True:
            self._peers.changed.clear()
            for address in list(self._announced.values()):
                await self._connect(address)
            for peer in self._peers.live:
                await peer.pair.probe_due(peer.announce_probe)
            await self._sleep()

    async def _connect(self, address: PeerAddress) -> None:
        try:
            await self._peers.get(address)
        except TransferError as error:
            if self._refused.get(address.endpoint) != error.message:
                _log.warning("no kv transfer from %s: %s", address.worker_id, error.message)
            self._refused[address.endpoint] = error.message
        else:
            self._refused.pop(address.endpoint, None)

    async def _sleep(self) -> None:
        """Waits until something changes, or the next probe is due."""
        now = self._engine.clock.now()
        seconds = min((peer.pair.choice.next_due() - now for peer in self._peers.live), default=float("inf"))
        if self._refused:
            seconds = min(seconds, _RETRY_SECONDS)
        try:
            async with asyncio.timeout(None if seconds == float("inf") else max(_SHORTEST_SECONDS, seconds)):
                await self._peers.changed.wait()
        except TimeoutError:
            return


def _row(breaker: str, peer: str, transport: str, why: str) -> PairStatus:
    return PairStatus(peer, transport, False, breaker, why, 0.0, 0.0, 0, 0, 0.0, 0)
