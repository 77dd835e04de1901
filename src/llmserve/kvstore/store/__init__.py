"""All tiers of one KV manager as one store: the requests of workers and operators, and moves between tiers.

A worker prepares a prompt: the store brings the longest stored prefix beyond what the worker's device has up
to DRAM and leases it, and reserves slots for the blocks that are stored nowhere. The worker copies from and
to the arena itself, commits what it wrote, and releases the lease. Bytes pass through this process only
between DRAM and the tiers below.

    store          the requests of workers
    movement       blocks between DRAM and the tiers below
    lower_tier     one tier below DRAM, with contents, write_queue, coding and medium_log
    build          the store that a manifest describes, with refusals
    admin          the requests of operators, with verify, export_import and archive
"""

from llmserve.kvstore.blocks import BlockSlots, PartFill, Prepared, Prompt, StoredBlock, part_key
from llmserve.kvstore.dram.tier import DramTier
from llmserve.kvstore.store.lower_tier import LowerSettings, LowerStore
from llmserve.kvstore.store.store import BlockStore, StoreSettings

__all__ = [
    "BlockSlots",
    "BlockStore",
    "DramTier",
    "LowerSettings",
    "LowerStore",
    "PartFill",
    "Prepared",
    "Prompt",
    "StoreSettings",
    "StoredBlock",
    "part_key",
]
