"""The DRAM tier: blocks in shared memory of the KV manager, which the workers of its host copy themselves.

The manager owns an arena (`arena`) and decides who may use which part of it (`table`); bytes never pass
through it. A worker attaches the arena by its description (`attached`) and copies between slots and its own
memory (`copier`); a worker elsewhere reaches the same memory by a transport, as a registered Region.

A block is there only once it is committed. Writers hold reservations, readers hold leases; both end by
themselves. Each use of a slot has a generation, which stands in the arena too: a copy counts only when the
generation still stands there after it. A checksum of what the writer meant to write goes with each block.

Eviction is decided by others: the pool says that it is full, and frees what it is told.
"""
