"""The writing end of pushes in a process: prefill's."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from llmserve.core.errors import TransferError
from llmserve.core.fields import object_of
from llmserve.core.ids import TransferId
from llmserve.engines.kv_transfer import wire
from llmserve.engines.kv_transfer.fallback import OnTransferFailed
from llmserve.engines.kv_transfer.io import HandoverIo
from llmserve.engines.kv_transfer.peers import PeerDirectory
from llmserve.engines.kv_transfer.push.following import PushChunk
from llmserve.engines.kv_transfer.push.messages import PushState, Reservation, StateAnswer, transfer_id_of
from llmserve.engines.kv_transfer.push.transfer import Finish, Leases, PushLimits, PushTransfer
from llmserve.engines.kv_transfer.push.writer import PushWriter

_log = logging.getLogger(__name__)
_CLOSE_SECONDS = 5.0
_CLOSE_RETRY_SECONDS = 0.005


class PushSender:
    """Methods without underscore, but `operations`, may be called from any thread and never wait."""

    def __init__(
        self,
        io: HandoverIo,
        peers: PeerDirectory,
        leases: Leases,
        on_transfer_failed: OnTransferFailed,
        limits: PushLimits | None = None,
    ) -> None:
        self._io = io
        self._peers = peers
        self._leases = leases
        self._on_trouble = on_transfer_failed
        self._limits = limits or PushLimits()
        self._transfers: dict[TransferId, PushTransfer] = {}
        self._closing = False

    # -- prefill's engine

    def announce(self, transfer_id: TransferId) -> None:
        """A request that is to be pushed has come; finish or drop follows."""
        self._post(lambda: self._open(transfer_id).announce())

    def begin_step(self, chunks: Sequence[PushChunk]) -> None:
        """Before a step computes: what lies before its chunks is final in all layers."""
        self._post(lambda: self._begin_step(chunks))

    def computed(self, layer: int, chunks: Sequence[PushChunk]) -> None:
        """The step has computed one layer of its chunks. Called in the middle of a forward pass."""
        self._post(lambda: self._computed(layer, chunks))

    def finish(self, transfer_id: TransferId, finish: Finish) -> None:
        """All layers of the whole prompt are computed, and pinned under the lease of the pull."""
        self._post(lambda: self._with(transfer_id, lambda transfer: transfer.finish(finish)))

    def drop(self, transfer_id: TransferId) -> None:
        """It will not be handed over. Its blocks may be freed at once: what is still read of them goes
        to decode, which is never told to trust it."""
        self._post(lambda: self._with(transfer_id, PushTransfer.drop))

    def close(self) -> None:
        """Ends all writing. Before the server closes, because peers take that for our end. Idempotent."""
        if not self._io.closed:
            self._io.call(self._stop_all())

    # -- decode, over the side channel

    @property
    def operations(self) -> Mapping[str, Callable[[int, wire.Message], wire.Message]]:
        return {"reserve": self._reserve, "push_state": self._state, "stop_push": self._stop}

    def _reserve(self, _: int, message: wire.Message) -> wire.Message:
        """With an empty reservation: decode has the request and no blocks for it yet."""
        transfer = self._open(transfer_id_of(message))
        if reservation := object_of(message, "reservation"):
            transfer.reserve(Reservation.from_message(reservation))
        transfer.hear()
        return transfer.state().to_message()

    def _state(self, _: int, message: wire.Message) -> wire.Message:
        transfer = self._transfers.get(transfer_id_of(message))
        if transfer is None:
            return StateAnswer(PushState.UNKNOWN).to_message()
        transfer.hear()
        return transfer.state().to_message()

    def _stop(self, _: int, message: wire.Message) -> wire.Message:
        """Also of a transfer that the engine will announce only later."""
        transfer_id = transfer_id_of(message)
        known = transfer_id in self._transfers
        transfer = self._open(transfer_id)
        transfer.stop()
        return (transfer.state() if known else StateAnswer(PushState.UNKNOWN)).to_message()

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

    def _post(self, action: Callable[[], object]) -> None:
        with suppress(TransferError):  # closed: there is nothing left to write to
            self._io.post(action)

    def _begin_step(self, chunks: Sequence[PushChunk]) -> None:
        for chunk in chunks:
            if chunk.restarted:
                self._with(chunk.transfer_id, PushTransfer.restart)
            for layer in range(len(self._io.layout.regions)):
                self._layer(layer, chunk.start_block, chunk)

    def _computed(self, layer: int, chunks: Sequence[PushChunk]) -> None:
        for chunk in chunks:
            self._layer(layer, chunk.end_block, chunk)

    def _layer(self, layer: int, end_block: int, chunk: PushChunk) -> None:
        if transfer := self._transfers.get(chunk.transfer_id):
            transfer.computed(layer, end_block, chunk.block_ids)

    def _with(self, transfer_id: TransferId, action: Callable[[PushTransfer], None]) -> None:
        if transfer := self._transfers.get(transfer_id):
            action(transfer)

    def _open(self, transfer_id: TransferId) -> PushTransfer:
        """Either side may speak of a transfer first."""
        if transfer := self._transfers.get(transfer_id):
            return transfer
        writer = PushWriter(self._io, self._on_trouble)
        transfer = PushTransfer(transfer_id, self._io, self._peers, self._leases, writer, self._limits)
        self._transfers[transfer_id] = transfer
        if self._closing:
            transfer.stop()
        task = self._io.spawn(f"push {transfer_id}", transfer.run())
        task.add_done_callback(lambda _: self._forget_later(transfer_id))
        return transfer

    def _forget_later(self, transfer_id: TransferId) -> None:
        """Decode may still ask how it ended."""
        loop = asyncio.get_running_loop()
        loop.call_later(self._limits.patience_seconds, self._transfers.pop, transfer_id, None)
