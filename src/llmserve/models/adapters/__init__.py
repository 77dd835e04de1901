"""LoRA adapters as files: from a source to checked, immutable directories, each named by its digest.

Workers open one `AdapterCache` (`open_adapter_cache`). All workers of a host share its two directories: one
on disk, and one in memory (tmpfs). `AdapterSource` says where an adapter comes from, and whether it may.
"""

from llmserve.models.adapters.cache import AdapterCache, AdapterFiles, open_adapter_cache
from llmserve.models.adapters.source import AdapterSource, AdapterSourceKind, is_below, parse_adapter_source

__all__ = [
    "AdapterCache",
    "AdapterFiles",
    "AdapterSource",
    "AdapterSourceKind",
    "is_below",
    "open_adapter_cache",
    "parse_adapter_source",
]
