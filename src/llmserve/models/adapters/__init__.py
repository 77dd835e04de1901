"""LoRA adapters as files: from a source to checked, immutable directories, each named by its digest.

Workers open one `AdapterCache` (`open_adapter_cache`). All workers of a host share its two directories: one
on disk, and one in DRAM (tmpfs). `AdapterSource` says where an adapter comes from, and whether it may.
"""

from llmserve.models.adapters.cache import AdapterCache, AdapterFiles, open_adapter_cache

__all__ = [
    "AdapterCache",
    "AdapterFiles",
    "open_adapter_cache",
]
