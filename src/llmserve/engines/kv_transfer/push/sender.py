"""The writing end of pushes in a process: prefill's."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from llmserve.core.ids import TransferId
from llmserve.engines.kv_transfer.peers import PeerDirectory
from llmserve.engines.kv_transfer.protocol import Answer, AskPush, PushStanding, PushState, Reserve, StopPush
from llmserve.engines.kv_transfer.push.progress import PushChunk
from llmserve.engines.kv_transfer.push.transfer import Finish, Leases, PushLimits, PushTransfer
from llmserve.engines.kv_transfer.rank import RankEngine
from llmserve.engines.kv_transfer.server import Handlers
from llmserve.transfer.devices import REACHED, Mark

_log = logging.getLogger(__name__)
_CLOSE_SECONDS = 5.0
_CLOSE_RETRY_SECONDS = 0.005


class PushSender:
    """Methods without underscore, but `handlers`, may be called from any thread and never wait. What they say
    is true once the given mark is reached; all that is said of one transfer comes from one thread."""

    def __init__(
        self,
        engine: RankEngine,
        peers: PeerDirectory,
        leases: Leases,
        limits: PushLimits | None = None,
    ) -> None:
        self._engine = engine
        self._peers = peers
        self._leases = leases
        self._limits = limits or PushLimits()
        self._transfers: dict[TransferId, PushTransfer] = {}
        self._closing = False

    # -- prefill's engine

    def announce(self, transfer_id: TransferId) -> None:
        """A request that is to be pushed has come; finish or drop follows."""
        self._engine.act(lambda: self._open(transfer_id).announce())

    def begin_step(self, chunks: Sequence[PushChunk], mark: Mark = REACHED) -> None:
        """Before a step computes: what lies before its chunks is final in all layers."""
        self._engine.marks.act(
            mark, lambda: self._begin_step(chunks), lambda reason: self._lose(chunks, reason)
        )

    def computed(self, layer: int, chunks: Sequence[PushChunk], mark: Mark = REACHED) -> None:
        """The step has computed one layer of its chunks. Called in the middle of a forward pass."""
        self._engine.marks.act(
            mark, lambda: self._computed(layer, chunks), lambda reason: self._lose(chunks, reason)
        )

    def finish(self, transfer_id: TransferId, finish: Finish, mark: Mark = REACHED) -> None:
        """All layers of the whole prompt are computed, and pinned under the lease of the pull."""
        self._engine.marks.act(
            mark,
            lambda: self._with(transfer_id, lambda transfer: transfer.finish(finish)),
            lambda reason: self._drop(transfer_id, reason),
        )

    def drop(self, transfer_id: TransferId) -> None:
        """It will not be handed over. Its blocks may be freed at once: what is still read of them goes
        to decode, which never trusts it."""
        self._engine.act(lambda: self._drop(transfer_id, "prefill was aborted"))

    def close(self) -> None:
        """Ends all writing. Before the server closes, because peers take that for our end. Idempotent."""
        if not self._engine.closed:
            self._engine.call(self._stop_all())

    # -- decode, over the side channel

    @property
    def handlers(self) -> Handlers:
        return {Reserve: self._reserve, AskPush: self._standing, StopPush: self._stop}

    def _reserve(self, _: int, request: Reserve) -> Answer:
        transfer = self._open(request.transfer_id)
        if request.reservation is not None:
            transfer.reserve(request.reservation)
        transfer.hear()
        return transfer.standing()

    def _standing(self, _: int, request: AskPush) -> Answer:
        transfer = self._transfers.get(request.transfer_id)
        if transfer is None:
            return PushStanding(PushState.UNKNOWN)
        transfer.hear()
        return transfer.standing()

    def _stop(self, _: int, request: StopPush) -> Answer:
        """Also stops a transfer that the engine will announce only later."""
        known = request.transfer_id in self._transfers
        transfer = self._open(request.transfer_id)
        transfer.stop()
        return transfer.standing() if known else PushStanding(PushState.UNKNOWN)

    # -- on the loop

    async def _stop_all(self) -> None:
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._stop_each():  # noqa: ASYNC110 (a write signals nothing to others)
                    await asyncio.sleep(_CLOSE_RETRY_SECONDS)

    def _stop_each(self) -> bool:
        """Whether any still writes."""
        busy = [transfer.stop() for transfer in self._transfers.values()]
        return any(busy)

    def _begin_step(self, chunks: Sequence[PushChunk]) -> None:
        for chunk in chunks:
            if chunk.restarted:
                self._with(chunk.transfer_id, PushTransfer.restart)
            for layer in range(self._engine.layout.geometry.pushed_layers):
                self._layer(layer, chunk.start_block, chunk)

    def _computed(self, layer: int, chunks: Sequence[PushChunk]) -> None:
        for chunk in chunks:
            self._layer(layer, chunk.end_block, chunk)

    def _layer(self, layer: int, end_block: int, chunk: PushChunk) -> None:
        if transfer := self._transfers.get(chunk.transfer_id):
            transfer.computed(layer, end_block, chunk.blocks)

    def _lose(self, chunks: Sequence[PushChunk], reason: str) -> None:
        """The kernels that were to write the chunks have failed."""
        for chunk in chunks:
            self._drop(chunk.transfer_id, reason)

    def _drop(self, transfer_id: TransferId, reason: str) -> None:
        self._with(transfer_id, lambda transfer: transfer.drop(reason))

    def _with(self, transfer_id: TransferId, action: Callable[[PushTransfer], None]) -> None:
        if transfer := self._transfers.get(transfer_id):
            action(transfer)

    def _open(self, transfer_id: TransferId) -> PushTransfer:
        """Either side may speak of a transfer first."""
        if transfer := self._transfers.get(transfer_id):
            return transfer
        transfer = PushTransfer(transfer_id, self._engine, self._peers, self._leases, self._limits)
        self._transfers[transfer_id] = transfer
        if self._closing:
            transfer.stop()
        task = self._engine.spawn(f"push {transfer_id}", transfer.run())
        task.add_done_callback(lambda _: self._forget_later(transfer_id))
        return transfer

    def _forget_later(self, transfer_id: TransferId) -> None:
        """Decode may still ask how it ended."""
        loop = asyncio.get_running_loop()
        loop.call_later(self._limits.patience_seconds, self._transfers.pop, transfer_id, None)
