"""Prints what `llmserve kv` found: tables for people, rows for programs. Pure."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from llmserve.cli.screen import table
from llmserve.overview.kv import TIER_SUMS
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb

_SHOWN_DIGITS = 16  # of a hash: enough to name a block


def size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


# -- stats


def stats_rows(status: pb.GetKvStatusResponse) -> dict[str, Any]:
    return {
        "tiers": [_tier_row(tier) for tier in status.tiers],
        "saved_prefill_seconds": status.saved_prefill_seconds,
    }


def _tier_row(tier: pb.TierStatus) -> dict[str, Any]:
    outcomes: dict[str, dict[str, int]] = {}
    for one in tier.outcomes:
        outcomes.setdefault(one.operation, {})[one.result] = one.count
    return {
        "name": tier.name,
        "kind": tier.kind,
        **{name: getattr(tier, name) for name in TIER_SUMS},
        "evictions": dict(tier.evictions),
        "outcomes": outcomes,
        "trouble": tier.trouble,
    }


def stats_page(status: pb.GetKvStatusResponse) -> RenderableType:
    shown = table("TIER", "KIND", "BLOCKS", "USED", "HITS", "LOADED", "STORED", "QUEUED", "PINNED")
    for tier in status.tiers:
        shown.add_row(*_tier_cells(tier))
    saved = f"Saved prefill: {status.saved_prefill_seconds:.1f} s" if status.saved_prefill_seconds else ""
    lines = [*_tier_lines(status), *filter(None, [saved])]
    return Group(shown, *(Text(line) for line in ["", *lines] if lines))


def _tier_cells(tier: pb.TierStatus) -> Iterator[str]:
    yield escape(tier.name)
    yield tier.kind
    yield str(tier.blocks)
    yield f"{size(tier.used_bytes)} of {size(tier.capacity_bytes)}"
    yield hits(tier)
    yield _moved(tier.load_bytes, tier.load_seconds)
    yield _moved(tier.store_bytes, tier.store_seconds)
    yield size(tier.queued_bytes) if tier.queued_bytes else "-"
    yield f"{tier.pinned_blocks} blocks" if tier.pinned_blocks else "-"


def hits(tier: pb.TierStatus) -> str:
    tokens = f" ({tier.hit_tokens} tokens)" if tier.hit_tokens else ""
    return f"{tier.hit_blocks} blocks{tokens}"


def _moved(size_bytes: int, seconds: float) -> str:
    speed = f", {size_bytes / seconds / 1e9:.2f} GB/s" if seconds else ""
    return f"{size(size_bytes)}{speed}" if size_bytes else "-"


def _tier_lines(status: pb.GetKvStatusResponse) -> Iterator[str]:
    """Tells only what has happened."""
    for tier in status.tiers:
        if tier.trouble:
            yield f"{tier.name}: {tier.trouble}"
        gone = [f"{blocks} {reason}" for reason, blocks in sorted(tier.evictions.items()) if blocks]
        if gone:
            yield f"{tier.name}: evicted {', '.join(gone)}"
        done = [f"{one.operation} {one.result} {one.count}" for one in tier.outcomes if one.count]
        if done:
            yield f"{tier.name}: {', '.join(done)}"


# -- blocks


def block_rows(listing: pb.ListBlocksResponse) -> dict[str, Any]:
    return {"total_blocks": listing.total_blocks, "blocks": list(map(_block_row, listing.blocks))}


def _block_row(block: pb.ListedBlock) -> dict[str, Any]:
    names = ("tier", "bytes", "idle_seconds", "pinned", "in_use")
    places = [{name: getattr(place, name) for name in names} for place in block.places]
    return {
        "hash": block.block_hash.hex(),
        "parent": block.parent_hash.hex() or None,
        "tenant": block.tenant,
        "tiers": places,
    }


def block_page(listing: pb.ListBlocksResponse) -> RenderableType:
    shown = table("BLOCK", "AFTER", "TENANT", "TIERS", "BYTES", "IDLE", "PINNED", "IN USE")
    for block in listing.blocks:
        shown.add_row(*_block_cells(block))
    listed, total = len(listing.blocks), listing.total_blocks
    count = f"{total} blocks" if listed == total else f"{listed} of {total} blocks, used last first"
    return Group(shown, Text(""), Text(count))


def _block_cells(block: pb.ListedBlock) -> Iterator[str]:
    places = block.places
    yield block.block_hash.hex()[:_SHOWN_DIGITS]
    yield block.parent_hash.hex()[:_SHOWN_DIGITS] or "-"
    yield escape(block.tenant) or "-"
    yield escape(", ".join(place.tier for place in places))
    yield size(max(place.bytes for place in places))
    yield _age(min(place.idle_seconds for place in places))
    yield escape(", ".join(place.tier for place in places if place.pinned)) or "-"
    yield escape(", ".join(place.tier for place in places if place.in_use)) or "-"


def _age(seconds: float) -> str:
    for limit, unit, one in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / one:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
