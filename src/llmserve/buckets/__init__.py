"""Buckets of S3, Azure and GCS: clients of obstore, and what can go wrong with a request. The KV store keeps
blocks in them, and adapters come from them."""
