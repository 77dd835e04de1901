"""Which KV manager a block of an archive belongs to.

Blocks are placed in runs, counted from the begin of their prompt (`kvstore.placing`). A record names the
block before it, except where a part of a prompt begins, which is where a run does. So the run of a block is
found by counting from the first block of its chain in the file. Where the file lacks blocks in between, the
rest is placed as if a run began there: at worst it is stored where nobody looks for it.
"""

from collections.abc import Sequence
from typing import BinaryIO

from llmserve.core.ids import BlockHash
from llmserve.kvstore.archive import Record, read
from llmserve.kvstore.placing import Placing


def homes_of(file: BinaryIO, managers: Sequence[str]) -> dict[BlockHash, str]:
    """The manager of each block. file: checked; it has a block after the one before it."""
    placing = Placing(dict.fromkeys(managers, 1.0))
    runs: dict[BlockHash, tuple[BlockHash, int]] = {}  # the first block of the run, and the place in it
    homes: dict[BlockHash, str] = {}
    for record in read(file):
        if isinstance(record, Record):
            head, place = _next_place(runs, record, placing.run_blocks)
            runs[record.key] = head, place
            homes[record.key] = homes[head] if place else placing.home(head)
    return homes


def _next_place(
    runs: dict[BlockHash, tuple[BlockHash, int]], record: Record, run_blocks: int
) -> tuple[BlockHash, int]:
    if record.parent is None or record.parent not in runs:
        return record.key, 0
    head, place = runs[record.parent]
    return (head, place + 1) if place + 1 < run_blocks else (record.key, 0)
