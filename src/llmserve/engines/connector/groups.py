"""The KV cache groups of a model: layers with one kind of attention, and a table of blocks for each group.

vLLM gives each group blocks of its own, all from one pool: every block fits every group. A group with a
sliding window gives back the blocks that the window has left behind, also while the prompt is computed. Their
ids become that of the null block (SlidingWindowManager in v1/core/single_type_kv_cache_manager.py).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    RSWASpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
    iter_layer_specs,
)

from llmserve.config.conflict import Conflict
from llmserve.config.refusals import MODEL_SOURCE, NO_FULL_ATTENTION, SEVERAL_BLOCK_SIZES, kinds_of_layers
from llmserve.core.kv_params import BlockRun, BlockTable

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

NULL_BLOCK = 0  # BlockPool.null_block: the first that it gives out
_DIGEST_LENGTH = 16


@dataclass(frozen=True, slots=True)
class KvGroups:
    """windows[g]: tokens that a layer of group g sees, its own included; 0 for all. counted: number of the
    group whose blocks stand for the prompt in events and in the router's index. layers: a digest of which
    layers are in which group; empty when there is one group."""

    block_size_tokens: int
    windows: tuple[int, ...] = (0,)
    counted: int = 0
    layers: str = ""

    @classmethod
    def of(cls, config: "KVCacheConfig", block_size_tokens: int) -> "KvGroups":
        """Errors: ManifestError for groups whose KV cannot be handed over."""
        specs = [next(iter(iter_layer_specs(group.kv_cache_spec))) for group in config.kv_cache_groups]
        for conflict in _obstacles(specs):
            raise conflict.as_error()
        windows = tuple(map(_window, specs))
        if len(specs) == 1:
            return cls(block_size_tokens, windows)
        names = [list(group.layer_names) for group in config.kv_cache_groups]
        digest = hashlib.sha256(json.dumps([windows, names]).encode()).hexdigest()[:_DIGEST_LENGTH]
        return cls(block_size_tokens, windows, windows.index(0), digest)

    @property
    def are_several(self) -> bool:
        return len(self.windows) > 1

    def table(self, block_ids: Sequence[Sequence[int]], first: int = 0, end: int | None = None) -> BlockTable:
        """The blocks from `first` on and before `end` of a prompt, without those that a window has left
        behind. block_ids: of each group, from the prompt's first block on."""
        stop = min(map(len, block_ids)) if end is None else end
        return BlockTable.of([_without_nulls(ids, first, stop) for ids in block_ids])

    def window_blocks(self, group: int) -> int:
        """How many blocks of a group with a window vLLM's offloading loads at the end of a prompt: with fewer
        it loads nothing (get_sliding_window_size_in_chunks in its offloading/scheduler.py)."""
        return -(-self.windows[group] // self.block_size_tokens)

    def keep_the_last(self, tokens: int) -> bool:
        """Whether the owner of so many tokens keeps what the last of them sees. Then that one can be computed
        again. The owner keeps what the next token sees: one token less, which may be the end of a block."""
        size = self.block_size_tokens
        return all(not window or tokens < window or (tokens - window + 1) % size for window in self.windows)


def _window(spec: "KVCacheSpec") -> int:
    return int(spec.sliding_window) if isinstance(spec, SlidingWindowSpec) else 0


def _without_nulls(block_ids: Sequence[int], first: int, end: int) -> BlockRun:
    while first < end and block_ids[first] == NULL_BLOCK:
        first += 1
    return BlockRun(first, tuple(block_ids[first:end]))


def _obstacles(specs: Sequence["KVCacheSpec"]) -> Iterator[Conflict]:
    others = {type(spec).__name__ for spec in specs if not _is_known(spec)}
    if others:
        yield Conflict((MODEL_SOURCE,), kinds_of_layers(others))
    if len({(spec.block_size, spec.page_size_bytes) for spec in specs}) > 1:
        yield Conflict((MODEL_SOURCE,), SEVERAL_BLOCK_SIZES)
    if len(specs) > 1 and all(map(_window, specs)):
        yield Conflict((MODEL_SOURCE,), NO_FULL_ATTENTION)


def _is_known(spec: "KVCacheSpec") -> bool:
    if isinstance(spec, SlidingWindowSpec):
        return not isinstance(spec, SlidingWindowMLASpec) and not spec.extra_retained_tokens
    return isinstance(spec, FullAttentionSpec) and not isinstance(spec, RSWASpec)
