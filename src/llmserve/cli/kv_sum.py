"""What several KV managers say, as if there were one. Pure.

Each knows all device blocks and leases of the cluster, so one is believed; of the store each has a part, so
those are added up.
"""

from collections.abc import Iterable, Mapping

from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb

# Of each tier: several managers' are added up.
TIER_SUMS = (
    "blocks",
    "used_bytes",
    "capacity_bytes",
    "pinned_blocks",
    "queued_bytes",
    "hit_blocks",
    "hit_tokens",
    "load_bytes",
    "load_seconds",
    "store_bytes",
    "store_seconds",
)


def summed(answers: Mapping[str, pb.GetKvStatusResponse]) -> pb.GetKvStatusResponse:
    """answers: by the name of the KV manager."""
    whole = pb.GetKvStatusResponse()
    if answers:
        whole.CopyFrom(max(answers.values(), key=_knowledge))
        del whole.tiers[:]
        whole.tiers.extend(_tiers(answers))
        whole.saved_prefill_seconds = sum(one.saved_prefill_seconds for one in answers.values())
    return whole


def listed(answers: Iterable[pb.ListBlocksResponse], limit: int) -> pb.ListBlocksResponse:
    """Used last first, at most so many."""
    every = list(answers)
    blocks = sorted((block for one in every for block in one.blocks), key=_idle_seconds)
    return pb.ListBlocksResponse(blocks=blocks[:limit], total_blocks=sum(one.total_blocks for one in every))


def imported(before: pb.ImportProgress, now: pb.ImportProgress) -> pb.ImportProgress:
    """before: of the KV managers that are done."""
    return pb.ImportProgress(
        received_blocks=before.received_blocks + now.received_blocks,
        done=now.done,
        stored_blocks=before.stored_blocks + now.stored_blocks,
        present_blocks=before.present_blocks + now.present_blocks,
        refused_blocks=before.refused_blocks + now.refused_blocks,
        tier=now.tier,
    )


def _idle_seconds(block: pb.ListedBlock) -> float:
    return min(place.idle_seconds for place in block.places)


def _knowledge(status: pb.GetKvStatusResponse) -> int:
    """How many workers it hears: one that has just started does not hear all yet."""
    return sum(worker.connected for worker in status.workers)


def _tiers(answers: Mapping[str, pb.GetKvStatusResponse]) -> Iterable[pb.TierStatus]:
    whole: dict[str, pb.TierStatus] = {}
    for manager, status in answers.items():
        for tier in status.tiers:
            into = whole.setdefault(tier.name, pb.TierStatus(name=tier.name, kind=tier.kind))
            _add(into, tier, f"{manager}: " if len(answers) > 1 else "")
    return whole.values()


def _add(into: pb.TierStatus, tier: pb.TierStatus, told_by: str) -> None:
    for name in TIER_SUMS:
        setattr(into, name, getattr(into, name) + getattr(tier, name))
    for reason, blocks in tier.evictions.items():
        into.evictions[reason] += blocks
    counts = {(one.operation, one.result): one for one in into.outcomes}
    for outcome in tier.outcomes:
        if same := counts.get((outcome.operation, outcome.result)):
            same.count += outcome.count
        else:
            into.outcomes.append(outcome)
    if tier.trouble:
        into.trouble = "; ".join(filter(None, (into.trouble, told_by + tier.trouble)))
