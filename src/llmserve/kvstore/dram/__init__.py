"""The DRAM tier: blocks in shared memory of the KV manager, which the workers of its host copy themselves.

The manager owns an arena (`arena`) and decides who may use which part of it (`tier`, over `slots` and
`slabs`); bytes never pass through it. A worker on the same host attaches the arena by its description and
copies between slots and its own memory (`client`). A worker elsewhere reaches the same memory by a
transport, as a registered region (`serving`, `client.remote`).

A block can be found only once it is committed. Writers hold reservations and readers hold leases; both end by
themselves. Each use of a slot has a generation, which stands in the arena too: a copy counts only if the same
generation stands there after it. A checksum of what the writer meant to write goes with each block.
"""
