"""Which KV blocks a tier takes in, keeps, and lets go; and when they move between tiers. Pure decisions."""

from llmserve.kvstore.eviction.admission import Admission, FrequencySketch
from llmserve.kvstore.eviction.arc import ArcPolicy
from llmserve.kvstore.eviction.base import EvictionPolicy, MakePolicy
from llmserve.kvstore.eviction.s3fifo import S3FifoPolicy
from llmserve.kvstore.eviction.tier_index import NOBODY, Added, EvictionRules, TierIndex, Victim
from llmserve.kvstore.eviction.tier_moves import (
    BlockAt,
    LowerTier,
    PromotionLimits,
    WriteMode,
    WriteStep,
    on_evicted,
    on_stored,
    promotions,
)

__all__ = [
    "NOBODY",
    "Added",
    "Admission",
    "ArcPolicy",
    "BlockAt",
    "EvictionPolicy",
    "EvictionRules",
    "FrequencySketch",
    "LowerTier",
    "MakePolicy",
    "PromotionLimits",
    "S3FifoPolicy",
    "TierIndex",
    "Victim",
    "WriteMode",
    "WriteStep",
    "on_evicted",
    "on_stored",
    "promotions",
]
