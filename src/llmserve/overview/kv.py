"""The KV managers of a cluster as if there were one. Each knows all device blocks and leases of the
cluster, so one is believed; each has a part of the store, so those are added up. Pure."""

from collections.abc import Iterable, Mapping

from google.protobuf.message import Message

from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb

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
        whole.CopyFrom(max(answers.values(), key=_connected_workers))
        del whole.tiers[:]
        whole.tiers.extend(_tiers(answers))
        whole.saved_prefill_seconds = sum(one.saved_prefill_seconds for one in answers.values())
    return whole


def _connected_workers(status: pb.GetKvStatusResponse) -> int:
    """A KV manager that has just started does not hear all workers yet."""
    return sum(worker.connected for worker in status.workers)


def _tiers(answers: Mapping[str, pb.GetKvStatusResponse]) -> Iterable[pb.TierStatus]:
    whole: dict[str, pb.TierStatus] = {}
    for manager, status in answers.items():
        for tier in status.tiers:
            into = whole.setdefault(tier.name, pb.TierStatus(name=tier.name, kind=tier.kind))
            _add_tier(into, tier, f"{manager}: " if len(answers) > 1 else "")
    return whole.values()


def _add_tier(into: pb.TierStatus, tier: pb.TierStatus, prefix: str) -> None:
    add_fields(into, tier, TIER_SUMS)
    for reason, blocks in tier.evictions.items():
        into.evictions[reason] += blocks
    counts = {(one.operation, one.result): one for one in into.outcomes}
    for outcome in tier.outcomes:
        if same := counts.get((outcome.operation, outcome.result)):
            same.count += outcome.count
        else:
            into.outcomes.append(outcome)
    if tier.trouble:
        into.trouble = "; ".join(filter(None, (into.trouble, prefix + tier.trouble)))


def add_fields(into: Message, one: Message, names: Iterable[str]) -> None:
    """Adds the fields of these names."""
    for name in names:
        setattr(into, name, getattr(into, name) + getattr(one, name))
