"""Which workers and tiers hold the blocks of a prompt."""
