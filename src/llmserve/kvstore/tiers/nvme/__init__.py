"""The NVMe tier: blobs in append-only segment files of one directory, by direct I/O.

A segment file is a row of records: a page of head (key, the caller's header, length, checksums), then the
data padded to pages. A record is written by one system call, and neighbours by one together. When a segment
is full it is sealed: its list of contents (the footer) is appended, and the rest is cut off. What is removed
gets a grave, which is a record too. A segment of which little is left is copied into the open one and
dropped. A segment's name is a random number, its stamp, and every checksum of heads starts from it: nothing
of another segment, of an older file in the same place on disk, or of another place in the file passes for
its own.

After a crash only segments without a footer are walked, and what they hold is read and checked; of the
others the footer alone is read. A blob is indexed when its record is whole. The index is memory only.

Bounds: all files together never pass the capacity. The size of one segment is kept back for the copying. So
blobs can fill the capacity less two segments, and fill three quarters of that before a write is FULL.
A removal is forgotten only when the process dies while that very blob is copied; it is then there again.
`durable`: a write is DONE when the medium has it, and outlives a power failure. Without: it outlives the
process, and what a power failure tears is a miss.

    settings  what the tier is told              layout    bytes of heads and footers (pure)
    disk      files, direct I/O, the lock        segments  which there are, their room, the index (pure)
    blob_io   runs of records, on threads        appender  the open segment: places, writes, seals
    recovery  what one file holds                restore   from files to segments and index
    writer    each key once                      reader    neighbours together
    compactor graves, copying, dropping          tier      the contract of `base`
"""

from llmserve.kvstore.tiers.nvme.settings import NvmeSettings
from llmserve.kvstore.tiers.nvme.tier import NvmeTier

__all__ = ["NvmeSettings", "NvmeTier"]
