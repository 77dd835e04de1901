"""The NVMe tier: blobs in one file, by direct I/O, and a head for each blob in another file.

`data.kv` is a row of pages; a blob has whole pages of it, in one run where there is one. `heads.kv` is a row
of slots; a head says which blob lies in which pages, and has the checksum of its bytes. Both files grow in
steps up to the capacity, and freed room is used in place: nothing is copied. The index is memory only.

A write puts the data into free pages, then the head into a free slot; a removal erases the head. So a blob
is found after a crash when its write was DONE, and a start reads the heads only. What a power failure tears
does not match its checksum and is a miss. With `durable` a write is DONE only when the medium has it.

Bounds: both files together never pass the capacity, and blobs can fill 95% of it before a write is FULL. A
removal is forgotten only by a power failure, or when its head cannot be erased, unless `settle_removals` was
DONE after it; a blob that comes back in this way is the one that was written, or a miss.

    tier       the contract of `base`           space      what is where, and the room (pure)
    writer     places, writes, removes          pages      the free pages of the data file (pure)
    reader     neighbours together              heads      bytes of heads (pure)
    record_io  blobs in pages, on threads       head_file  heads in their file, on threads
    recovery   what an earlier process left     disk       files, direct I/O, the lock
"""

from llmserve.kvstore.tiers.nvme.tier import NvmeSettings, NvmeTier

__all__ = ["NvmeSettings", "NvmeTier"]
