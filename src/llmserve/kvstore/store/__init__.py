"""All tiers of one KV manager as one store: what workers ask of it, and what moves between tiers.

A worker prepares a prompt: the longest stored prefix beyond what its device has is brought up to DRAM and
leased, and slots are reserved for the blocks that are stored nowhere. The worker copies from and to the
pool's memory itself, commits what it wrote, and releases the lease. Bytes never pass through here, except
between DRAM and the tiers below.

    words   what is asked and answered
    dram    the pool and its book: which blocks are there, whose room is taken
    codecs  a tier's codecs, by the shape of what they encode
    coding  between bytes in the pool and blobs of a tier
    lower   one tier below: what it holds, writes down, brings up
    store   the requests of workers
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
