"""The KV store as vLLM's offloading framework sees it (vllm/v1/kv_offload/base.py).

vLLM decides which blocks to load and to store, when they may be copied, and what happens when requests are
preempted or aborted; ours is where the blocks go. The scheduler's half (`manager`) asks the KV manager once
for each prompt (`link`, never waiting); the ranks' half (`worker`) copies between the engine's blocks and the
pool's memory, on a thread of its own.
"""
