"""A worker's side of the DRAM tier: copies between slots and its own memory, mapped or over transports."""
