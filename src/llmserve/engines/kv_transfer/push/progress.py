"""Which blocks of a prompt each step makes final, and which are computed, wanted and taken to be written,
layer by layer. Pure.

Blocks are counted from the prompt's first; in each layer they become final in order. Layers are counted group
after group (KvGeometry.pushed_layers). Of a group with a window only those blocks are wanted that the end of
the prompt still sees: prefill has them until it ends, while it may give earlier ones to another request.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.core.errors import TransferError
from llmserve.core.ids import TransferId
from llmserve.core.kv_params import BlockRun, BlockTable
from llmserve.engines.kv_transfer.protocol import Reservation


@dataclass(frozen=True, slots=True)
class PushChunk:
    """What one engine step computes of a prompt: its blocks from start_block to end_block become final, and
    those before it are. blocks: of the prompt so far, as far as its windows reach. restarted: the engine had
    taken the blocks away, and computes again."""

    transfer_id: TransferId
    start_block: int
    end_block: int
    blocks: BlockTable
    restarted: bool = False


@dataclass(slots=True)
class PromptFollower:
    """Follows the steps of one prefill that is to be pushed, in their order."""

    transfer_id: TransferId
    prompt_tokens: int
    block_size_tokens: int
    _computed: int = 0
    _blocks: BlockTable | None = None

    def step(self, start: int, tokens: int, blocks: BlockTable) -> PushChunk:
        """Notes that a step computes `tokens` tokens from number `start` on. A block is final when it is
        full, or the prompt ends in it. An engine that preempts a request takes its blocks away, and begins
        again with what its cache still has of them."""
        end = min(start + tokens, self.prompt_tokens)
        restarted = start < self._computed or not _continues(self._blocks, blocks)
        self._computed, self._blocks = end, blocks
        size = self.block_size_tokens
        end_block = -(-end // size) if end == self.prompt_tokens else end // size
        return PushChunk(self.transfer_id, start // size, end_block, blocks, restarted)


def _continues(known: BlockTable | None, blocks: BlockTable) -> bool:
    """Whether the known blocks are still the same, but for those that a window has left behind."""
    if known is None:
        return True
    runs = zip(known.runs, blocks.runs, strict=True)
    return known.end <= blocks.end and all(_is_continued(old, new, known.end) for old, new in runs)


def _is_continued(old: BlockRun, new: BlockRun, end: int) -> bool:
    """Whether what is left of the old blocks, which end before `end`, is the beginning of the new ones."""
    first = new.first_block
    return first >= end or (first >= old.first_block and old.part(first, end) == new.part(first, end))


@dataclass(frozen=True, slots=True)
class LayerPiece:
    """Copy source_ids[i] of one layer to target_ids[i]. layer: as in the geometry."""

    layer: int
    source_ids: Sequence[int]
    target_ids: Sequence[int]


class PushProgress:
    """State of one transfer. Each block of each layer is taken once, and all again after `restart`."""

    def __init__(self, block_bytes: Sequence[int], groups: int = 1) -> None:
        """block_bytes: see KvGeometry. groups: number of groups of layers."""
        self._group_layers = len(block_bytes)
        self._block_bytes = tuple(block_bytes) * groups
        self._groups = groups
        self._sources: list[BlockRun] = []  # of each group
        self._computed = [0] * len(self._block_bytes)  # blocks before it are final
        self._taken = [0] * len(self._block_bytes)  # blocks before it were taken, or are not wanted
        self._reservation: Reservation | None = None
        self._targets: list[BlockRun] = []  # of each group, once there is a reservation
        self._end: int | None = None  # of the whole prompt, once prefill has finished
        self.taken_bytes = 0

    # -- prefill computes

    def computed(self, layer: int, end_block: int, blocks: BlockTable) -> None:
        """The blocks before end_block are final in a layer; `blocks` are those of the prompt."""
        self._sources = list(blocks.runs)
        self._computed[layer] = max(self._computed[layer], end_block)

    def restart(self) -> None:
        """The engine took the blocks away and computes again: what was read of them since is not true."""
        self._computed = [0] * len(self._computed)
        self._taken = self._firsts()
        self.taken_bytes = 0

    def finish(self, blocks: BlockTable) -> None:
        """All layers of all these blocks, the whole prompt's, are final."""
        self._sources = list(blocks.runs)
        self._computed = [blocks.end] * len(self._computed)
        self._end = blocks.end

    # -- decode wants

    def want(self, reservation: Reservation) -> None:
        """Errors: TransferError for blocks of another number of groups."""
        assert self._reservation is None, "one reservation a transfer"
        if (groups := len(reservation.blocks.first_blocks)) != self._groups:
            raise TransferError(f"decode has reserved blocks of {groups} groups, prefill has {self._groups}")
        self._reservation = reservation
        self._targets = list(reservation.blocks.runs)
        self._taken = self._firsts()

    def _firsts(self) -> list[int]:
        """The first block that is wanted of each layer."""
        if self._reservation is None:
            return [0] * len(self._taken)
        return [first for first in self._reservation.blocks.first_blocks for _ in range(self._group_layers)]

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
        if (reserved := self._reservation.blocks.end) != self._end:
            raise TransferError(f"decode has reserved {reserved} blocks for a prompt of {self._end}")

    def take(self, at_most_bytes: int) -> list[LayerPiece]:
        """What to write now, at least one block when anything is ready. Errors: TransferError when prefill's
        window has left behind what decode wants."""
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
        return min(self._computed[layer], self._reservation.blocks.end)

    def _piece(self, layer: int, count: int) -> LayerPiece:
        group, place = divmod(layer, self._group_layers)
        first = self._taken[layer]
        end = self._taken[layer] = first + count
        self.taken_bytes += count * self._block_bytes[layer]
        return LayerPiece(place, self._sources[group].part(first, end), self._targets[group].part(first, end))
