"""LLMServeConnector: how a vLLM engine hands its KV blocks over, and fetches those of another.

One class, two halves that vLLM makes in two processes:

- `scheduler_side` in the EngineCore decides: which prompt tokens come from outside, which finished
  blocks get a lease. It never touches memory.
- `worker_side` in each vLLM worker (one per rank) acts: it owns the KV memory, the transports and
  the lease table, through engines/kv_transfer.

`orders` is what goes from the first to the second with each engine step, and what comes back.
"""
