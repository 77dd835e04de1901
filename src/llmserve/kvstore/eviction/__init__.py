"""Which KV blocks a tier takes in, keeps, and lets go; and when they move between tiers. Pure decisions."""

from llmserve.kvstore.eviction.admission import Admission
from llmserve.kvstore.eviction.arc import ArcPolicy
from llmserve.kvstore.eviction.base import EvictionPolicy, MakePolicy
from llmserve.kvstore.eviction.book import TierBook
from llmserve.kvstore.eviction.lru import LruPolicy
from llmserve.kvstore.eviction.prefetch import BlockAt, PromotionLimits, promotions
from llmserve.kvstore.eviction.rules import NOBODY, Added, EvictionRules, Victim
from llmserve.kvstore.eviction.s3fifo import S3FifoPolicy
from llmserve.kvstore.eviction.sketch import FrequencySketch
from llmserve.kvstore.eviction.writing import LowerTier, WriteMode, WriteStep, on_evicted, on_stored

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
    "LruPolicy",
    "MakePolicy",
    "PromotionLimits",
    "S3FifoPolicy",
    "TierBook",
    "Victim",
    "WriteMode",
    "WriteStep",
    "on_evicted",
    "on_stored",
    "promotions",
]
