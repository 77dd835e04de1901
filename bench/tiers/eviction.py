"""Hit tokens by eviction policy, room and workload; what the tier below gains from admission and from the
moment of writing. Simulated: the decisions are those of the product, the blocks are only names."""

from collections.abc import Callable
from functools import partial
from itertools import product

from bench.table import markdown
from bench.tiers.kv_simulation import Hits, TwoTiers, everything_kept, one_tier, plain_lru
from bench.tiers.kv_workloads import WORKLOADS, KvRequest, Workload, noisy_neighbour, scans, take
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import DEFAULT_TENANT, TenantId
from llmserve.kvstore.eviction import ArcPolicy, EvictionRules, MakePolicy, S3FifoPolicy, TierIndex, WriteMode
from tests.support.lru_policy import LruPolicy

ASKED_BLOCKS = 150_000
ROOM = (0.02, 0.05, 0.1, 0.25)
POLICIES: dict[str, MakePolicy] = {
    "LRU": LruPolicy,
    "S3-FIFO": S3FifoPolicy,
    "ARC": ArcPolicy,
}
TIER_POLICIES = ("S3-FIFO", "ARC")


def run() -> str:
    tables = (
        "Share of prompt tokens found, by room (share of all distinct blocks)\n\n" + _by_policy(),
        "Two tenants, one of them a batch job; room 5%\n\n" + _by_rules(),
        "Found in DRAM (3%) or NVMe (15%), by the policies of both\n\n" + _by_pair(),
        "What is written to NVMe, same room\n\n" + _by_writing(),
    )
    return "\n\n".join(tables)


def _by_policy() -> str:
    rows: list[list[object]] = []
    for name, workload in WORKLOADS.items():
        requests = take(workload(), ASKED_BLOCKS)
        most, distinct = everything_kept(requests)
        for share in ROOM:
            room = int(share * distinct)
            figures = [
                plain_lru(requests, room),
                *(one_tier(requests, room, make) for make in POLICIES.values()),
            ]
            rows.append([name, f"{share:.0%}", *map(_percent, figures), _percent(most)])
    return markdown(["workload", "room", "LRU, no tree", *POLICIES, "all kept"], rows)


def _by_rules() -> str:
    requests = take(noisy_neighbour(), ASKED_BLOCKS)
    room = everything_kept(requests)[1] // 20
    batch = TenantId("batch")
    variants = {
        "none": EvictionRules(),
        "hot set of 40% each": EvictionRules(tenant_hotset_bytes=int(0.4 * room)),
        "quota of 20% for the batch job": EvictionRules(tenant_quota_bytes={batch: room // 5}),
        "hot for 60 s": EvictionRules(hot_keep_seconds=60),
    }
    rows = [
        [rule, name, *(f"{hits.tenant_percent(t):.1f}" for t in (DEFAULT_TENANT, batch))]
        for rule, rules in variants.items()
        for name, make in POLICIES.items()
        if (hits := one_tier(requests, room, make, rules))
    ]
    return markdown(["rule", "policy", "chat %", "batch %"], rows)


def _by_writing() -> str:
    rows: list[list[object]] = []
    workloads: dict[str, Callable[[], Workload]] = {**WORKLOADS, "batch job alone": partial(scans, 5)}
    for name in ("chat, nothing shared", "agents", "mixed", "batch job alone"):
        requests = take(workloads[name](), ASKED_BLOCKS)
        for mode, filtered in product(WriteMode, (False, True)):
            hits = _two_tiers(requests, ArcPolicy, ArcPolicy, mode, filtered=filtered)
            admission = "proven only" if filtered else "all"
            upper = f"{100 * hits.upper / hits.asked:.1f}"
            rows.append([name, mode, admission, upper, _percent(hits), f"{hits.written / 1000:.1f}"])
    headings = [
        "workload",
        "write",
        "admission",
        "found in DRAM %",
        "found in all %",
        "blocks written, thousands",
    ]
    return markdown(headings, rows)


def _by_pair() -> str:
    pairs = list(product(TIER_POLICIES, TIER_POLICIES))
    rows = []
    for name, workload in WORKLOADS.items():
        requests = take(workload(), ASKED_BLOCKS)
        found = [
            _two_tiers(requests, POLICIES[upper], POLICIES[lower], WriteMode.BACK, filtered=True)
            for upper, lower in pairs
        ]
        rows.append([name, *map(_percent, found)])
    return markdown(["workload", *(f"{upper} / {lower}" for upper, lower in pairs)], rows)


def _two_tiers(
    requests: list[KvRequest], upper: MakePolicy, lower: MakePolicy, mode: WriteMode, *, filtered: bool
) -> Hits:
    distinct = len({key for request in requests for key in request.blocks})
    clock = VirtualClock()
    dram = TierIndex(int(0.03 * distinct), upper, clock)
    nvme = TierIndex(int(0.15 * distinct), lower, clock)
    return TwoTiers(dram, nvme, clock, mode, filtered=filtered).run(requests)


def _percent(hits: Hits) -> str:
    return f"{hits.percent:.1f}"
