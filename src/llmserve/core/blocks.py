"""Identity of a KV block.

`block_hash = sha256(cbor((parent_hash, token_ids, extra_keys)))`, chained, so that a hash names the
whole prefix. The namespace enters as the cache salt of the first block and reaches every later one
through its parent. The adapter is in the extra keys of every block, since vLLM puts it there. The bytes are
those of vLLM's `sha256_cbor` prefix hash (vllm/v1/core/kv_cache_utils.py: hash_block_tokens), so the same
identity holds in the device cache, on the wire, in every tier and in the router's index. A test compares the
two.
"""

import hashlib
import json
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from llmserve.core.adapters import BASE_MODEL, engine_path
from llmserve.core.ids import AdapterDigest, BlockHash
from llmserve.core.recent import RecentMap

_ROOT_SEED = "vllm-none-hash"


@dataclass(frozen=True, slots=True)
class Namespace:
    """Everything that must be equal before two requests may share KV. model_revision (models/identity.py)
    and adapter_digest: digests of contents, never names. computation: those of the engine's settings that
    change the numbers. tenant_salt: empty when the manifest lets tenants share. draft_revision: as
    model_revision, of the draft model, whose KV lies in the same blocks."""

    model_revision: str
    kv_dtype: str
    layout: str
    block_size_tokens: int
    computation: str = ""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    adapter_digest: str = ""
    tenant_salt: str = ""
    draft_revision: str = ""

    def salt(self, request_salt: str = "") -> str:
        """Returns the cache salt for an engine: hex, 32 characters. request_salt: the client's own."""
        return _salt(self, request_salt)


@lru_cache(maxsize=4096)  # most requests of a tenant have the same one, and ask for it four times
def _salt(namespace: Namespace, request_salt: str) -> str:
    named = asdict(namespace)
    if not namespace.draft_revision:  # blocks that were stored before there were drafts are still found
        del named["draft_revision"]
    fields = json.dumps([named, request_salt], sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()[:32]


def chain_hashes(
    token_ids: Sequence[int], block_size_tokens: int, cache_salt: str, adapter: AdapterDigest = BASE_MODEL
) -> list[BlockHash]:
    """Returns the hashes of the full blocks of a prompt, in order. A partial last block has no identity."""
    return list(_chain(token_ids, block_size_tokens, cache_salt, adapter))


def _chain(
    token_ids: Sequence[int], size: int, cache_salt: str, adapter: AdapterDigest
) -> Iterator[BlockHash]:
    parent: BlockHash | None = None
    for start in range(0, len(token_ids) - size + 1, size):
        parent = next_hash(parent, token_ids[start : start + size], cache_salt, adapter)
        yield parent


class BlockChains:
    """Computes the hashes of prompts, but not again those of blocks that it saw lately: chats begin with what
    was said before."""

    def __init__(self, limit_blocks: int = 1 << 16) -> None:
        """limit_blocks: number of blocks that are remembered, at about 350 bytes each."""
        self._known: RecentMap[tuple[BlockHash | tuple[str, str], bytes], BlockHash] = RecentMap(limit_blocks)

    def hashes(
        self,
        token_ids: Sequence[int],
        block_size_tokens: int,
        cache_salt: str,
        adapter: AdapterDigest = BASE_MODEL,
    ) -> list[BlockHash]:
        """Returns what `chain_hashes` returns."""
        size, packed = block_size_tokens, array("I", token_ids).tobytes()
        size_bytes = len(packed) // max(1, len(token_ids)) * size
        chain: list[BlockHash] = []
        for index in range(len(token_ids) // size):
            parent = chain[-1] if chain else None
            key = (parent or (cache_salt, adapter), packed[index * size_bytes : (index + 1) * size_bytes])
            found = self._known.get(key)
            if found is None:
                tokens = token_ids[index * size : (index + 1) * size]
                found = next_hash(parent, tokens, cache_salt, adapter)
                self._known.put(key, found)
            chain.append(found)
        return chain


def next_hash(
    parent: BlockHash | None,
    token_ids: Sequence[int],
    cache_salt: str,
    adapter: AdapterDigest = BASE_MODEL,
) -> BlockHash:
    """Returns the hash of one full block that follows `parent`. None: it is the first block, which carries
    the salt. adapter: that of the request, the same for all of its blocks."""
    before = _ROOT if parent is None else parent
    extra = _extra_keys(cache_salt if parent is None else "", adapter)
    # Inlined for the heads of most tokens: hashing a prompt is on every request's path.
    tokens = b"".join([_PACK_16(25, t) if 0xFF < t < 0x10000 else _cbor_uint(t) for t in token_ids])
    body = b"\x83\x58\x20" + before + _cbor_head(0x80, len(token_ids)) + tokens + extra
    return BlockHash(hashlib.sha256(body).digest())


_CBOR_NULL = b"\xf6"
_PACK_16 = struct.Struct(">BH").pack


@lru_cache(maxsize=4096)  # the same for all blocks of a request but the first
def _extra_keys(cache_salt: str, adapter: AdapterDigest) -> bytes:
    """Returns vLLM's extra keys of a block: (("lora", name, path), ("cache_salt", salt)) without those that
    the block has not, or null. cache_salt: empty for all blocks but the first."""
    keys: list[tuple[str, ...]] = [("lora", adapter, engine_path(adapter))] if adapter else []
    keys += [("cache_salt", cache_salt)] if cache_salt else []
    if not keys:
        return _CBOR_NULL
    return _cbor_array([_cbor_array([_cbor_text(text) for text in key]) for key in keys])


def _cbor_array(items: Sequence[bytes]) -> bytes:
    return _cbor_head(0x80, len(items)) + b"".join(items)


def _cbor_text(text: str) -> bytes:
    raw = text.encode()
    return _cbor_head(0x60, len(raw)) + raw


def _cbor_uint(value: int) -> bytes:
    return _cbor_head(0x00, value)


def _cbor_head(major: int, value: int) -> bytes:
    """Returns the shortest CBOR head (RFC 8949, 4.2.1) of a major type and its argument."""
    if value < 24:
        return bytes((major | value,))
    if value < 0x100:
        return bytes((major | 24, value))
    if value < 0x10000:
        return struct.pack(">BH", major | 25, value)
    return struct.pack(">BI", major | 26, value)


_ROOT = hashlib.sha256(_cbor_text(_ROOT_SEED)).digest()
