"""HTTP for users, gRPC towards router and workers: vLLM's OpenAI layer on a cluster instead of an engine."""
