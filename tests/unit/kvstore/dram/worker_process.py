"""A worker in a process of its own. One order a line on stdin, as JSON; one answer a line on stdout.

argv: the arena's description, the seed of its memory, and `host` or `device` for the kind of its memory.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.access import RemoteAccess, open_pool
from llmserve.kvstore.dram.client.copier import CopyOutcome
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.engine.engine import SharedTransfers
from tests.unit.kvstore.dram.worker_memory import WorkerMemory


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    device = FakeDevice() if sys.argv[3] == "device" else None
    memory = WorkerMemory(int(sys.argv[2]), device=device)
    shared = SharedTransfers(staging=Staging(device) if device else None)
    copier = open_pool("kvmanager-0", sys.argv[1], memory.regions, RemoteAccess(shared=shared))

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
