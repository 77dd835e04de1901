"""Checks with real traffic that apiservers and engines hash prompts alike. Pure.

When a request has ended, its worker must soon report the first block of its prompt, which an engine evicts
last. One block that is found proves a worker's incarnation. Several that are missing, although the worker
reports blocks, show that it hashes differently: by another block size, seed, salt or adapter. Requests
would still run, but nothing cached would ever be found, and nobody would notice.
"""

from dataclasses import dataclass
from enum import StrEnum

from llmserve.core.clock import Clock
from llmserve.core.ids import BlockHash, WorkerId
from llmserve.router.prefix.index import PrefixIndex

# Engines report within tenths of a second.
LOOK_AFTER_SECONDS = 2.0
MISSES_THAT_TELL = 3


class HashState(StrEnum):
    UNPROVEN = "unproven"  # nothing has run yet, or no blocks are reported
    MATCHES = "matches"
    DIFFERS = "differs"  # of one worker at least


@dataclass(slots=True)
class _Evidence:
    """What is known of one incarnation. expected: the block to look for at `due`."""

    epoch: int
    misses: int = 0
    is_proven: bool = False
    expected: BlockHash | None = None
    due: float = 0.0


class HashConsistency:
    """Looks for one prompt of each worker at a time, and for none once the worker is proven."""

    def __init__(self, clock: Clock, index: PrefixIndex) -> None:
        self._clock, self._index = clock, index
        self._evidence: dict[WorkerId, _Evidence] = {}

    def ran(self, worker_id: WorkerId, epoch: int, first_block: BlockHash) -> None:
        """The worker has computed or loaded a prompt that begins with this block."""
        evidence = self._evidence.get(worker_id)
        if evidence is None or evidence.epoch < epoch:
            evidence = self._evidence[worker_id] = _Evidence(epoch)
        if evidence.epoch == epoch and not evidence.is_proven and evidence.expected is None:
            evidence.expected, evidence.due = first_block, self._clock.now() + LOOK_AFTER_SECONDS

    def next_due(self) -> float | None:
        """Time at which `look` has something to do."""
        return min((one.due for one in self._evidence.values() if one.expected), default=None)

    def look(self) -> None:
        now = self._clock.now()
        for worker_id, one in self._evidence.items():
            if one.expected is None or one.due > now:
                continue
            if self._index.has_on_device(worker_id, one.expected):
                one.is_proven = True
            elif self._index.device_blocks(worker_id):
                one.misses += 1
            one.expected = None

    @property
    def state(self) -> HashState:
        if self._differing():
            return HashState.DIFFERS
        proven = any(one.is_proven for one in self._evidence.values())
        return HashState.MATCHES if proven else HashState.UNPROVEN

    @property
    def problem(self) -> str:
        """The problem for people; empty: there is none."""
        return "; ".join(map(self._words, self._differing()))

    def _differing(self) -> list[WorkerId]:
        """Workers that hash differently and still report blocks."""
        misses = {name: one.misses for name, one in self._evidence.items() if not one.is_proven}
        tell = [name for name, count in misses.items() if count >= MISSES_THAT_TELL]
        return [name for name in tell if self._index.device_blocks(name)]

    def _words(self, worker_id: WorkerId) -> str:
        return (
            f"{worker_id} reports {self._index.device_blocks(worker_id)} KV blocks, but of the last "
            f"{self._evidence[worker_id].misses} prompts that it ran none is among them: it hashes blocks "
            "differently than the apiserver (block size, hash seed, salt or adapter), so what it has "
            "cached is never found"
        )
