"""Translates between the messages of router.proto and the router's own types."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import cast

from llmserve.config.wanted_models import ServedName
from llmserve.core.adapters import NamedAdapter
from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.core.ids import DEFAULT_TENANT, AdapterDigest, BlockHash, RequestId, TenantId, WorkerId
from llmserve.core.kv_params import HandoverMode
from llmserve.core.stats import SchedulerStats
from llmserve.router.adapters.awaited import AdapterPrefetch
from llmserve.router.events import Admit, HeldRequest, Incarnation, RequestPlaced, RequestRefused
from llmserve.router.placement.planner import Candidate, PlacementRequest
from llmserve.router.prefix.hot import HotPrefix
from llmserve.router.prefix.index import HashedPrompt
from llmserve.router.prefix.lookup import PrefixLookup
from llmserve.router.workers.handover import HandoverChoice
from llmserve.router.workers.speed import MeasuredSpeed
from llmserve.router.workers.worker import ClusterMember, DrainOrder, KvShape, WorkerSpec, WorkerState
from llmserve.rpc.adapters import decode_lora, encode_lora, encode_names, encode_tier
from llmserve.rpc.codec import decode_role, encode_load, encode_outcome, encode_role
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2
from llmserve.rpc.models import encode_served
from llmserve.scheduler.key_limits import NO_LIMITS, KeyLimits

_SHAPE_FIELDS = tuple(KvShape.__dataclass_fields__)
_LIMIT_FIELDS = ("requests_per_second", "tokens_per_second", "max_requests_in_flight")


def decode_worker(info: common_pb2.WorkerInfo) -> WorkerSpec:
    """Errors: InvalidRequest."""
    return WorkerSpec(
        worker_id=WorkerId(info.worker_id),
        role=decode_role(info.role),
        address=info.address,
        epoch=info.epoch,
        model=info.model,
        kv_shape=KvShape(**{name: getattr(info.kv_shape, name) for name in _SHAPE_FIELDS}),
        max_model_len_tokens=info.max_model_len_tokens,
        total_blocks=info.total_blocks,
        max_concurrency=info.max_concurrency,
        transports=tuple(info.transports),
        handover_endpoints=tuple(info.handover_endpoints),
        lora=decode_lora(info.lora),
        min_decode_slots=info.min_decode_slots,
    )


def encode_worker(spec: WorkerSpec) -> common_pb2.WorkerInfo:
    shape = {name: getattr(spec.kv_shape, name) for name in _SHAPE_FIELDS}
    return common_pb2.WorkerInfo(
        worker_id=spec.worker_id,
        role=encode_role(spec.role),
        address=spec.address,
        epoch=spec.epoch,
        model=spec.model,
        kv_shape=common_pb2.KvShape(**shape),
        max_model_len_tokens=spec.max_model_len_tokens,
        total_blocks=spec.total_blocks,
        max_concurrency=spec.max_concurrency,
        transports=spec.transports,
        handover_endpoints=spec.handover_endpoints,
        lora=encode_lora(spec.lora),
        min_decode_slots=spec.min_decode_slots,
    )


def decode_admit(message: router_pb2.Admit) -> Admit:
    """Errors: InvalidRequest."""
    if not message.request_id or not message.model:
        raise InvalidRequest("request_id and model of an Admit must be set")
    return Admit(
        request_id=RequestId(message.request_id),
        tenant=TenantId(message.tenant or DEFAULT_TENANT),
        placement=PlacementRequest(
            model=message.model,
            prompt_tokens=message.prompt_tokens,
            excluded_workers=frozenset(map(WorkerId, message.excluded_workers)),
            adapter=AdapterDigest(message.adapter),
        ),
        max_output_tokens=message.max_output_tokens,
        choices=message.choices or 1,
        priority=message.priority,
        timeout_seconds=message.timeout_seconds,
        limits=decode_limits(message.key_limits) if message.HasField("key_limits") else NO_LIMITS,
        again=message.again,
        prompt=HashedPrompt(cast("tuple[BlockHash, ...]", tuple(message.block_hashes)), message.block_tokens),
    )


def decode_held(message: router_pb2.HeldPlacement) -> HeldRequest:
    """Errors: InvalidRequest."""
    placement = message.placement
    if not message.request_id or not placement.decode.worker_id:
        raise InvalidRequest("request_id and decode worker of a held placement must be set")
    return HeldRequest(
        request_id=RequestId(message.request_id),
        tenant=TenantId(message.tenant or DEFAULT_TENANT),
        prefill=_incarnation(placement.prefill) if placement.HasField("prefill") else None,
        decode=_incarnation(placement.decode),
        prompt_tokens=message.prompt_tokens,
        max_output_tokens=message.max_output_tokens,
        choices=message.choices or 1,
        adapter=AdapterDigest(message.adapter),
        model=placement.decode.model,
        limits=decode_limits(message.key_limits),
        output_tokens=message.output_tokens,
    )


def decode_limits(message: router_pb2.KeyLimits) -> KeyLimits:
    """Errors: InvalidRequest."""
    given = {name: getattr(message, name) for name in _LIMIT_FIELDS if message.HasField(name)}
    for name, limit in given.items():
        if not 0 < limit < float("inf"):
            raise InvalidRequest(f"{name} of a key must be a number over 0, got {limit}")
    return KeyLimits(message.key, **given) if message.key else NO_LIMITS


def _incarnation(info: common_pb2.WorkerInfo) -> Incarnation:
    return Incarnation(WorkerId(info.worker_id), info.epoch)


class PlacementEncoder:
    """Encodes placements. It keeps each worker's message, because copying one is far cheaper than building
    one."""

    def __init__(self) -> None:
        self._encoded: dict[WorkerId, tuple[WorkerSpec, common_pb2.WorkerInfo]] = {}

    def placed(self, placed: RequestPlaced, message: router_pb2.Placed) -> None:
        """Fills an empty message where it lies: to put a message into another one copies all of it."""
        plan, placement = placed.plan, message.placement
        message.request_id, message.queue_seconds = placed.request_id, placed.queue_seconds
        if plan.prefill:
            placement.prefill.CopyFrom(self._worker(plan.prefill.spec))
        placement.decode.CopyFrom(self._worker(plan.decode.spec))
        placement.predicted_cached_tokens, placement.push = placed.predicted_cached_tokens, plan.pushed
        _fill_report(placed, message.report)

    def _worker(self, spec: WorkerSpec) -> common_pb2.WorkerInfo:
        known = self._encoded.get(spec.worker_id)
        if known is None or known[0] is not spec:
            known = self._encoded[spec.worker_id] = (spec, encode_worker(spec))
        return known[1]

    def forget_all(self) -> None:
        """Called when the membership changes, so that workers long gone are not kept."""
        self._encoded.clear()


def encode_refused(refused: RequestRefused, message: router_pb2.Refused) -> None:
    """Fills an empty message."""
    error: LLMServeError = refused.error
    message.request_id, message.outcome = refused.request_id, encode_outcome(refused.outcome)
    message.error, message.message = type(error).__name__, error.message
    message.retry_after_seconds = error.retry_after_seconds or 0.0


def encode_cluster(
    members: Iterable[ClusterMember],
    epoch: int,
    adapters: Iterable[NamedAdapter] | None = None,
    models: Iterable[ServedName] | None = None,
) -> router_pb2.RouterSessionResponse:
    """Encodes the registered workers, suspected ones included: streams to them go on. adapters: the names
    that requests may use; models: those whose requests are taken. None: those that the session was told
    last."""
    workers = [encode_worker(member.spec) for member in members if member.registered]
    names = None if adapters is None else encode_names(adapters)
    served = None if models is None else encode_served(models)
    state = router_pb2.ClusterState(workers=workers, epoch=epoch, adapters=names, models=served)
    return router_pb2.RouterSessionResponse(state=state)


def encode_peers(version: int, peers: Iterable[ClusterMember]) -> router_pb2.HeartbeatResponse:
    return router_pb2.HeartbeatResponse(
        members_version=version,
        kv_peers=[
            router_pb2.KvPeer(
                worker_id=peer.spec.worker_id, epoch=peer.spec.epoch, endpoints=peer.spec.handover_endpoints
            )
            for peer in peers
        ],
    )


def decode_order(message: router_pb2.DrainOrder, default_seconds: float) -> DrainOrder:
    return DrainOrder(message.drain, message.timeout_seconds or default_seconds)


def encode_order(order: DrainOrder) -> router_pb2.DrainOrder:
    return router_pb2.DrainOrder(drain=order.drain, timeout_seconds=order.timeout_seconds)


def encode_status(
    member: ClusterMember,
    now: float,
    slow: Mapping[WorkerId, str],
    speeds: Mapping[WorkerId, Sequence[MeasuredSpeed]],
) -> router_pb2.WorkerStatus:
    """slow: the reason for each slow worker."""
    why_slow = slow.get(member.spec.worker_id, "")
    return router_pb2.WorkerStatus(
        info=encode_worker(member.spec),
        load=encode_load(member.load),
        available=member.state is WorkerState.AVAILABLE,
        reason=member.reason or why_slow,
        heartbeat_age_seconds=now - member.heard_at,
        placed_requests=member.slots.placed_requests,
        draining=member.state is WorkerState.DRAINING,
        slow=bool(why_slow),
        speeds=[router_pb2.MeasuredSpeed(**asdict(one)) for one in speeds.get(member.spec.worker_id, ())],
    )


def encode_index(prefixes: PrefixLookup, away: Iterable[str], now: float) -> router_pb2.PrefixIndexStatus:
    return router_pb2.PrefixIndexStatus(
        followed=prefixes.index.followed,
        away=away,
        blocks=prefixes.index.blocks,
        proof=prefixes.hash_check.state,
        problem=prefixes.hash_check.problem,
        hottest=[_hot(one, now) for one in prefixes.hot.hottest()],
        prompt_tokens=prefixes.prompt_tokens,
        cached_tokens=prefixes.cached_tokens,
    )


def _hot(prefix: HotPrefix, now: float) -> router_pb2.HotPrefix:
    return router_pb2.HotPrefix(
        block_hash=prefix.block_hash,
        tenant=prefix.tenant,
        blocks=prefix.blocks,
        tokens=prefix.tokens,
        uses=prefix.uses,
        idle_seconds=now - prefix.used_at,
    )


def _fill_report(placed: RequestPlaced, message: router_pb2.PlacementReport) -> None:
    """Says why a request got this place at this time, for its record at the apiserver."""
    report, plan = placed.report, placed.plan
    message.requests_ahead, message.note = placed.requests_ahead, plan.note
    message.used_up_seconds.update(report.used_up_seconds)
    message.tenant_weight, message.tenant_share = report.weight, report.share
    message.predicted_cached_tokens = placed.predicted_cached_tokens
    for one in plan.candidates:
        _fill_candidate(one, message.candidates.add())
    if plan.handover:
        _fill_handover(plan.handover, message.handover)
    message.prefetches.extend(map(_prefetch, placed.prefetches))


def _prefetch(one: AdapterPrefetch) -> router_pb2.AdapterPrefetch:
    return router_pb2.AdapterPrefetch(
        worker_id=one.worker_id, tier=encode_tier(one.tier), seconds=one.seconds
    )


def _fill_handover(choice: HandoverChoice, message: router_pb2.HandoverChoice) -> None:
    message.push, message.reason = choice.mode is HandoverMode.PUSH, choice.reason
    message.pull_seconds, message.push_seconds = choice.pull_seconds, choice.push_seconds


def _fill_candidate(one: Candidate, message: router_pb2.PlacementCandidate) -> None:
    message.prefill, message.decode = one.prefill or "", one.decode
    seconds = message.seconds
    for name, value in zip(one.parts._fields, one.parts, strict=True):
        if value:
            seconds[name] = value


def encode_tenants(stats: SchedulerStats) -> list[router_pb2.TenantStatus]:
    return [
        router_pb2.TenantStatus(
            tenant=one.tenant,
            weight=one.weight,
            queued_requests=one.waiting,
            running_requests=one.running,
            dispatched_requests=one.dispatched,
            refused_requests=one.refused,
            queue_seconds=one.queue_seconds,
            served_tokens=one.served_tokens,
        )
        for one in stats.tenants
    ]


def encode_budgets(stats: SchedulerStats) -> list[router_pb2.BudgetStatus]:
    return [
        router_pb2.BudgetStatus(name=one.name, used_ratio=one.used_ratio, refused_requests=one.refused)
        for one in stats.budgets
    ]
