"""LLMServe: disaggregated serving of large language models from one manifest."""

__version__ = "0.1.0"
