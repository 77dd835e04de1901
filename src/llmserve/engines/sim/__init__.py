"""A simulated engine: true KV block accounting and a timing model, without a model.

It serves capacity planning and tests at scale. `pool`, `sequence`, `scheduler` and `step` decide without
asyncio; `engine` sleeps, hands KV over and delivers.
"""
