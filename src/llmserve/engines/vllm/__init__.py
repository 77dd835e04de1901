"""vLLM as an engine: tokens in, tokens out, KV handed over by engines/connector.

We drive vLLM's EngineCore client directly, one layer below AsyncLLM (docs/decisions/0002): its
outputs reach the apiserver's OutputProcessor unchanged, and no text is made here.
"""
