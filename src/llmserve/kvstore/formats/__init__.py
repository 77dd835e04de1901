"""How a tier stores a KV block: quantized, compressed, encrypted, in this order, each or none.

`BlockCodec.encode(key, block, out)` gives a header and a payload, for a tier to keep side by side; `decode`
brings the block back. Lossless, unless quantized: what decodes then is the nearest that int8 or fp8 can say
(docs/kv-formats.md has the errors). The header says how it was stored, so blocks outlive a change of the
manifest and the rotation of keys. Whatever cannot be decoded raises a BlockUnreadable: a miss.

The codec must know what a block's bytes are (`shape`), for a scale is shared by all tokens of a channel: the
caller tells the layout (`shape_of`). Where the packing of an attention kernel is not known, scales
are shared by 64 neighbours in memory instead (`packings.grouped`): larger payloads, and other errors.

Checksums are the tiers': a codec finds damage only as far as encryption or zstd must. Everything is numpy,
zstd and AES on the CPU, in buffers of the caller; `gpu` quantizes in a GPU's memory, to the same payload.
"""

from llmserve.kvstore.formats.codec import BlockCodec, Encoded
from llmserve.kvstore.formats.encrypt import KeyRing, KeySource
from llmserve.kvstore.formats.header import BlockFormat, Compress, Header, Quantize
from llmserve.kvstore.formats.shape import BlockShape, Element, grouped, shape_of

__all__ = [
    "BlockCodec",
    "BlockFormat",
    "BlockShape",
    "Compress",
    "Element",
    "Encoded",
    "Header",
    "KeyRing",
    "KeySource",
    "Quantize",
    "grouped",
    "shape_of",
]
