"""How a tier stores its blocks: the stages, in this order."""

from dataclasses import dataclass
from enum import StrEnum


class Quantize(StrEnum):
    NONE = "none"
    INT8 = "int8"
    FP8 = "fp8"  # e4m3: 4 bits of exponent, 3 of mantissa


class Compress(StrEnum):
    NONE = "none"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """encrypt: AES-256-GCM under the newest key."""

    quantize: Quantize = Quantize.NONE
    compress: Compress = Compress.NONE
    encrypt: bool = False
