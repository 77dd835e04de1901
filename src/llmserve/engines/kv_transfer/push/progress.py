"""Which blocks of a prompt each step makes final, and which are computed, wanted and taken to be written,
layer by layer. Pure.

Blocks are counted from the prompt's first; in each layer they become final in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.core.errors import TransferError
from llmserve.core.ids import TransferId
from llmserve.engines.kv_transfer.protocol import Reservation


@dataclass(frozen=True, slots=True)
class PushChunk:
    """What one engine step computes of a prompt: its blocks from start_block to end_block become final, and
    those before it are. block_ids: of the prompt so far, from its first block on. restarted: the engine had
    taken the blocks away, and computes again."""

    transfer_id: TransferId
    start_block: int
    end_block: int
    block_ids: tuple[int, ...]
    restarted: bool = False


@dataclass(slots=True)
class PromptFollower:
    """Follows the steps of one prefill that is to be pushed, in their order."""

    transfer_id: TransferId
    prompt_tokens: int
    block_size_tokens: int
    _computed: int = 0
    _block_ids: tuple[int, ...] = ()

    def step(self, start: int, tokens: int, block_ids: Sequence[int]) -> PushChunk:
        """Notes that a step computes `tokens` tokens from number `start` on. A block is final when it is
        full, or the prompt ends in it. An engine that preempts a request takes its blocks away, and begins
        again with what its cache still has of them."""
        end = min(start + tokens, self.prompt_tokens)
        known = len(self._block_ids)
        restarted = start < self._computed or tuple(block_ids[:known]) != self._block_ids
        self._computed, self._block_ids = end, tuple(block_ids)
        size = self.block_size_tokens
        end_block = -(-end // size) if end == self.prompt_tokens else end // size
        return PushChunk(self.transfer_id, start // size, end_block, self._block_ids, restarted)


@dataclass(frozen=True, slots=True)
class LayerPiece:
    """Copy source_ids[i] of one layer to target_ids[i]."""

    layer: int
    source_ids: tuple[int, ...]
    target_ids: tuple[int, ...]


class PushProgress:
    """State of one transfer. Each block of each layer is taken once, and all again after `restart`."""

    def __init__(self, block_bytes: Sequence[int]) -> None:
        """block_bytes[l]: of a block of layer l."""
        self._block_bytes = tuple(block_bytes)
        self._source_ids: tuple[int, ...] = ()
        self._computed = [0] * len(self._block_bytes)  # blocks before it are final
        self._taken = [0] * len(self._block_bytes)  # blocks before it were taken, or are not wanted
        self._reservation: Reservation | None = None
        self._end: int | None = None  # of the whole prompt, once prefill has finished
        self.taken_bytes = 0

    # -- prefill computes

    def computed(self, layer: int, end_block: int, block_ids: Sequence[int]) -> None:
        """The blocks before end_block are final in a layer; block_ids are those of the prompt, from its
        first block on."""
        self._source_ids = tuple(block_ids)
        self._computed[layer] = max(self._computed[layer], end_block)

    def restart(self) -> None:
        """The engine took the blocks away and computes again: what was read of them since is not true."""
        self._computed = [0] * len(self._computed)
        self._taken = [self._first] * len(self._taken)
        self.taken_bytes = 0

    def finish(self, block_ids: Sequence[int]) -> None:
        """All layers of all these blocks, the whole prompt's, are final."""
        self._source_ids = tuple(block_ids)
        self._computed = [len(block_ids)] * len(self._computed)
        self._end = len(block_ids)

    # -- decode wants

    def want(self, reservation: Reservation) -> None:
        assert self._reservation is None, "one reservation a transfer"
        self._reservation = reservation
        self._taken = [reservation.first_block] * len(self._taken)

    @property
    def _first(self) -> int:
        return 0 if self._reservation is None else self._reservation.first_block

    # -- the writer takes

    @property
    def ready(self) -> bool:
        """Whether `take` has something to give."""
        return any(taken < self._ready_end(layer) for layer, taken in enumerate(self._taken))

    @property
    def complete(self) -> bool:
        """Prefill has finished, and all that is wanted was taken."""
        return self._end is not None and self._reservation is not None and not self.ready

    def check_fits(self) -> None:
        """Errors: TransferError when decode has set aside blocks for another length of prompt."""
        if self._end is None or self._reservation is None:
            return
        if (reserved := self._reservation.end_block) != self._end:
            raise TransferError(f"decode has reserved {reserved} blocks for a prompt of {self._end}")

    def take(self, at_most_bytes: int) -> list[LayerPiece]:
        """What to write now, at least one block when anything is ready."""
        pieces: list[LayerPiece] = []
        room = at_most_bytes
        for layer, size in enumerate(self._block_bytes):
            count = min(self._ready_end(layer) - self._taken[layer], max(room // size, 0 if pieces else 1))
            if count > 0:
                pieces.append(self._piece(layer, count))
                room -= count * size
        return pieces

    def _ready_end(self, layer: int) -> int:
        if self._reservation is None:
            return 0
        return min(self._computed[layer], self._reservation.end_block)

    def _piece(self, layer: int, count: int) -> LayerPiece:
        assert self._reservation is not None, "nothing is ready without one"
        first = self._taken[layer]
        end = self._taken[layer] = first + count
        self.taken_bytes += count * self._block_bytes[layer]
        target = slice(first - self._first, end - self._first)
        return LayerPiece(layer, self._source_ids[first:end], self._reservation.block_ids[target])
