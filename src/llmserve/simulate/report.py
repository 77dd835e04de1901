"""The results of a simulation: figures, and the shares of tenants over time as an SVG image."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmserve.core.adapters import AdapterTier
from llmserve.core.ids import TenantId
from llmserve.core.stats import Percentiles, jain
from llmserve.plot import Series, plot
from llmserve.simulate.cluster import VirtualCluster
from llmserve.simulate.engine import VirtualEngine
from llmserve.simulate.observed import SimRecord, Timeline, per_weight


@dataclass(frozen=True, slots=True)
class Goals:
    """Limits that a good request meets, in seconds: to its first token, between its tokens on average, and
    in all. None: no limit."""

    first_token_seconds: float | None = None
    gap_seconds: float | None = None
    total_seconds: float | None = None

    def met(self, record: SimRecord) -> bool:
        pairs = (
            (record.first_token_seconds, self.first_token_seconds),
            (record.gap_seconds, self.gap_seconds),
            (record.total_seconds, self.total_seconds),
        )
        return record.served and all(goal is None or value <= goal for value, goal in pairs)


@dataclass(frozen=True, slots=True)
class TenantLine:
    """share: part of all tokens computed while requests of every tenant waited; 0 when they never did."""

    tenant: str
    weight: float
    served: int
    refused: int
    tokens: int
    share: float
    first_token: Percentiles
    total: Percentiles


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """busy: part of the time. kv_used: part of its blocks, mean and most. requests: requests placed on it."""

    worker: str
    busy: float
    kv_used_mean: float
    kv_used_most: float
    prefill_tokens: int
    decode_tokens: int
    preemptions: int
    requests: int


@dataclass(frozen=True, slots=True)
class SimReport:
    """seconds: virtual time to the end of the last request. gaps: between tokens; request_gaps: means of
    requests. good: requests that met the goals. refusals: counts by name of the error. jain: index of
    tokens by weight while requests of every tenant waited, for contended_seconds; None: they never did.
    Shares mean nothing while there is enough for all. on_one_worker: part of the placed requests whose
    prompt and answer one worker computes. pushed: part whose KV prefill writes while it computes. adapters:
    where workers found the adapters of requests, as parts by tier; empty: no request had one."""

    seconds: float
    requests: int
    served: int
    refusals: dict[str, int]
    good: int
    requests_per_second: float
    good_per_second: float
    output_tokens_per_second: float
    first_token: Percentiles
    gaps: Percentiles
    request_gaps: Percentiles
    total: Percentiles
    queue: Percentiles
    prefix_hits: float
    on_one_worker: float
    pushed: float
    adapters: dict[str, float]
    jain: float | None
    contended_seconds: int
    tenants: tuple[TenantLine, ...]
    workers: tuple[WorkerLine, ...]


def make_report(
    records: Sequence[SimRecord], cluster: VirtualCluster, weights: Mapping[TenantId, float], goals: Goals
) -> SimReport:
    served = [record for record in records if record.served]
    good = sum(map(goals.met, records))
    seconds = max((r.ended_at for r in records if r.ended_at is not None), default=0.0)
    observed = cluster.observed
    tenants = sorted({record.request.tenant for record in records})
    contended = observed.timeline.contended(tenants)
    prompts = sum(record.request.prompt_tokens for record in served)
    rate = 1 / seconds if seconds else 0.0
    placed = max(1, sum(record.placed_at is not None for record in records))
    return SimReport(
        seconds=seconds,
        requests=len(records),
        served=len(served),
        refusals=dict(sorted(Counter(r.refusal for r in records if r.refusal).items())),
        good=good,
        requests_per_second=len(served) * rate,
        good_per_second=good * rate,
        output_tokens_per_second=sum(record.output_tokens for record in served) * rate,
        first_token=Percentiles.of([record.first_token_seconds for record in served]),
        gaps=Percentiles.of_counts(observed.gaps),
        request_gaps=Percentiles.of([record.gap_seconds for record in served]),
        total=Percentiles.of([record.total_seconds for record in served]),
        queue=Percentiles.of([record.queue_seconds for record in served]),
        prefix_hits=sum(record.cached_tokens for record in served) / prompts if prompts else 0.0,
        on_one_worker=observed.on_one_worker / placed,
        pushed=observed.pushed / placed,
        adapters=_adapters(cluster.engines.values()),
        jain=_jain(observed.timeline, contended, tenants, weights) if contended else None,
        contended_seconds=len(contended),
        tenants=tuple(_tenant(t, records, observed.timeline, contended, weights) for t in tenants),
        workers=tuple(_worker(engine, cluster, seconds) for engine in cluster.engines.values()),
    )


def _adapters(engines: Iterable[VirtualEngine]) -> dict[str, float]:
    found = sum((engine.adapters.found for engine in engines), Counter[AdapterTier]())
    return {tier.value: found[tier] / found.total() for tier in AdapterTier if found[tier]}


def _jain(
    timeline: Timeline, contended: list[int], tenants: Sequence[TenantId], weights: Mapping[TenantId, float]
) -> float:
    tokens = timeline.sums(contended)
    return jain(per_weight({tenant: tokens[tenant] for tenant in tenants}, weights).values())


def _tenant(
    tenant: TenantId,
    records: Sequence[SimRecord],
    timeline: Timeline,
    contended: list[int],
    weights: Mapping[TenantId, float],
) -> TenantLine:
    own = [record for record in records if record.request.tenant == tenant]
    served = [record for record in own if record.served]
    tokens = timeline.sums(contended)
    return TenantLine(
        tenant=tenant,
        weight=weights.get(tenant, 1.0),
        served=len(served),
        refused=sum(1 for record in own if record.refusal),
        tokens=timeline.sums(range(len(timeline.tokens)))[tenant],
        share=tokens[tenant] / tokens.total() if tokens else 0.0,
        first_token=Percentiles.of([record.first_token_seconds for record in served]),
        total=Percentiles.of([record.total_seconds for record in served]),
    )


def _worker(engine: VirtualEngine, cluster: VirtualCluster, seconds: float) -> WorkerLine:
    totals, blocks = engine.totals(), engine.pool.total_blocks
    beats = max(1, cluster.observed.heartbeats // len(cluster.engines))
    return WorkerLine(
        worker=engine.worker_id,
        busy=totals.busy_seconds / seconds if seconds else 0.0,
        kv_used_mean=cluster.observed.kv_used[engine.worker_id] / beats / blocks,
        kv_used_most=totals.most_used_blocks / blocks,
        prefill_tokens=totals.prefill_tokens,
        decode_tokens=totals.decode_tokens,
        preemptions=totals.preemptions,
        requests=cluster.observed.requests[engine.worker_id],
    )


# Seconds over which a share is taken: less shows single requests.
_WINDOW_SECONDS = 5


def shares_svg(timeline: Timeline, tenants: Sequence[TenantId], seconds: int, title: str) -> str:
    """Draws each tenant's part of the tokens computed in the last five seconds, in percent."""
    series = [
        Series(tenant, [(at, 100 * shares(timeline, tenant, tenants, at)) for at in range(seconds)])
        for tenant in tenants
    ]
    return plot(title, "seconds", "% of the tokens", series) + "\n"


def shares(timeline: Timeline, tenant: TenantId, tenants: Sequence[TenantId], second: int) -> float:
    """The tenant's part of the tokens in the window that ends with this second; 0 when there were none."""
    window = timeline.sums(range(max(0, second - _WINDOW_SECONDS + 1), second + 1))
    total = sum(window[one] for one in tenants)
    return window[tenant] / total if total else 0.0
