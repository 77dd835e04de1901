"""Makes a snapshot of what is known of the processes and from the answers of the cluster. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from google.protobuf.message import Message

from llmserve.overview.views import (
    BudgetView,
    HotPrefixView,
    IndexView,
    RoleView,
    Snapshot,
    SpeedView,
    TenantView,
    TierView,
    WorkerView,
)
from llmserve.rpc.adapter_calls import adapter_row
from llmserve.rpc.codec import decode_load, decode_role
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, router_pb2

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


HEALTHY = "healthy"
# Words of runner/board.py: ProcessState.
_READY = "ready"
_DRAINED = "drained"


class KnownProcesses(Protocol):
    """What is known of a cluster without asking it. roles: an entry for each process, as in cluster.json
    (runner/state.py: ClusterState). started_at: Unix time."""

    @property
    def name(self) -> str: ...
    @property
    def stand(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def base_urls(self) -> Sequence[str]: ...
    @property
    def pid(self) -> int: ...
    @property
    def started_at(self) -> float: ...
    @property
    def roles(self) -> Sequence[Mapping[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Answers:
    """What the cluster said. healths: HEALTHY, or why not, by the name of the process. router: the answer of
    the router that leads. leading: its address, empty when none leads. adapters: what it lists. kvmanager:
    the sum of all answers. A service that did not answer has its default here and a sentence in
    `problems`."""

    healths: Mapping[str, str] = field(default_factory=dict)
    router: router_pb2.GetClusterStatusResponse = field(default_factory=router_pb2.GetClusterStatusResponse)
    kvmanager: kvmanager_pb2.GetKvStatusResponse = field(default_factory=kvmanager_pb2.GetKvStatusResponse)
    problems: tuple[str, ...] = ()
    leading: str = ""
    adapters: tuple[router_pb2.AdapterStatus, ...] = ()


def snapshot(state: KnownProcesses, answers: Answers, now: float) -> Snapshot:
    """now: Unix time."""
    workers = dict(_workers(answers))
    roles = tuple(_role(role, answers, workers) for role in state.roles)
    kv = answers.kvmanager
    return _view(
        Snapshot,
        kv,
        answers.router,
        cluster=state.name,
        stand=state.stand,
        model=", ".join(dict.fromkeys(filter(None, (role.get("model") for role in state.roles))))
        or state.model,
        base_urls=tuple(state.base_urls),
        pid=state.pid,
        uptime_seconds=now - state.started_at,
        roles=roles,
        tiers=tuple(_view(TierView, tier) for tier in kv.tiers),
        index=_index(answers.router.prefix_index),
        tenants=tuple(map(_tenant, answers.router.tenants)),
        budgets=tuple(map(_budget, answers.router.budgets)),
        adapters=tuple(map(adapter_row, answers.adapters)),
        problems=(*answers.problems, *_problems(roles, kv), *_index_problems(answers.router.prefix_index)),
    )


_View = TypeVar("_View", bound="DataclassInstance")


def _view(kind: type[_View], *sources: Message, **others: Any) -> _View:
    """Fills the fields of a view: those in `others`, and from the first source that has one of that name."""
    names = {field.name for field in fields(kind)} - set(others)
    copied = {
        name: getattr(source, name) for source in reversed(sources) for name in names if hasattr(source, name)
    }
    return kind(**copied, **others)


def _workers(answers: Answers) -> Iterator[tuple[str, WorkerView]]:
    stored = {worker.worker_id: worker.device_blocks for worker in answers.kvmanager.workers}
    for worker in answers.router.workers:
        info, load = worker.info, worker.load
        decoded = decode_load(load)
        yield (
            info.worker_id,
            _view(
                WorkerView,
                worker,
                load,
                info,
                role=decode_role(info.role).value,
                stored_blocks=stored.get(info.worker_id, 0),
                transports=tuple(info.transports),
                pairs=decoded.pairs,
                speeds=tuple(map(_speed, worker.speeds)),
                speculation=decoded.speculation,
            ),
        )


def _speed(speed: router_pb2.MeasuredSpeed) -> SpeedView:
    peers = speed.peers_seconds if speed.HasField("peers_seconds") else None
    return _view(SpeedView, speed, peers_seconds=peers)


def _tenant(tenant: router_pb2.TenantStatus) -> TenantView:
    wait_seconds = tenant.queue_seconds / max(1, tenant.dispatched_requests)
    return _view(TenantView, tenant, name=tenant.tenant, wait_seconds=wait_seconds)


def _budget(budget: router_pb2.BudgetStatus) -> BudgetView:
    used_ratio = budget.used_ratio if budget.HasField("used_ratio") else None
    return _view(BudgetView, budget, used_ratio=used_ratio)


def _index(status: router_pb2.PrefixIndexStatus) -> IndexView:
    hottest = tuple(_view(HotPrefixView, one, block_hash=one.block_hash.hex()) for one in status.hottest)
    return _view(IndexView, status, followed=tuple(status.followed), away=tuple(status.away), hottest=hottest)


def _index_problems(status: router_pb2.PrefixIndexStatus) -> Iterator[str]:
    for address in status.away:
        yield f"the router does not follow the kvmanager at {address}: what it has is not known"
    if status.problem:
        yield f"requests are not routed to what is cached: {status.problem}"


def _role(role: Mapping[str, Any], answers: Answers, workers: Mapping[str, WorkerView]) -> RoleView:
    stand = role["stand"]
    health = answers.healths.get(role["name"], "") if stand == _READY else role["detail"]
    return RoleView(
        name=role["name"],
        role=role["role"],
        stand=stand,
        health=health,
        pid=role["pid"],
        restarts=role["restarts"],
        address=role["http"] or role["listen"] or "",
        log=role["log"],
        worker=workers.get(role["name"]),
        leads=bool(answers.leading) and answers.leading == role["listen"],
    )


def _problems(roles: tuple[RoleView, ...], kv: kvmanager_pb2.GetKvStatusResponse) -> Iterator[str]:
    for role in roles:
        if role.stand == _DRAINED or (role.worker is not None and role.worker.draining):
            continue  # as somebody wanted it
        if role.stand != _READY:
            yield f"{role.name} is {role.stand}" + (f": {role.health}" if role.health else "")
        elif role.health != HEALTHY:
            yield f"{role.name}: {role.health}"
        elif role.worker is not None and not role.worker.available:
            yield f"{role.name} gets no requests: {role.worker.reason}"
        elif role.worker is not None and role.worker.slow:
            yield f"{role.name} is avoided: {role.worker.reason}"
    for tier in kv.tiers:
        if tier.trouble:
            yield f"storage class {tier.name}: {tier.trouble}"
    if kv.orphan_blocks:
        yield f"{kv.orphan_blocks} KV blocks are orphaned: pinned, although their lease has ended"
