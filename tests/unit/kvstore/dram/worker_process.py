"""A worker in a process of its own. One order a line on stdin, as JSON; one answer a line on stdout.

argv: the arena's description, the seed of its memory.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.attached import AttachedArena
from llmserve.kvstore.dram.client.copier import CopyOutcome, PoolCopier
from tests.unit.kvstore.dram.worker_memory import WorkerMemory


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    arena, memory = AttachedArena(sys.argv[1]), WorkerMemory(int(sys.argv[2]))
    copier = PoolCopier(arena, memory.regions)

    def store_for_ever(slot: Slot) -> None:
        """Until the slot is no longer its own."""
        say("writing")
        while (copied := copier.store([slot], memory.spans(0))[0]).outcome is CopyOutcome.DONE:
            pass
        say(copied.outcome)

    def load_for_ever(slot: Slot) -> None:
        say("reading")
        while (copied := copier.load([slot], memory.spans(0))[0]).outcome is CopyOutcome.DONE:
            pass
        say(copied.outcome)

    orders: dict[str, Callable[[Slot], object]] = {
        "store": lambda slot: say(copier.store([slot], memory.spans(0))[0].checksum),
        "load": lambda slot: say(
            [copier.load([slot], memory.spans(1))[0].outcome, memory.block(1) == memory.block(0)]
        ),
        "store_for_ever": store_for_ever,
        "load_for_ever": load_for_ever,
    }
    say("attached")
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        orders[order["do"]](Slot(*order["slot"]))


if __name__ == "__main__":
    main()
