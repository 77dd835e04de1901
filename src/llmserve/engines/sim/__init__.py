"""A simulated engine: true KV block accounting and a timing model, without a model.

For capacity planning, and for tests at scale. `pool`, `sequence`, `scheduler`, `tokens` and `timing`
decide and know no asyncio; `engine` is the shell that sleeps, hands KV over and delivers.
"""
