"""The workers of the cluster. Pure.

A worker registers, sends heartbeats, and is lost when it is silent for longer than the expiry. It is used
again as soon as it is heard: by a heartbeat of the same incarnation, or when a newer incarnation registers
and replaces the older.
"""

from collections.abc import Iterator, Mapping, Sequence
from weakref import WeakValueDictionary

from llmserve.core.adapters import AdapterReport, AdapterReports
from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.core.request import EngineLoad, WorkerRole
from llmserve.router.workers.worker import ClusterMember, DrainOrder, WorkerSlots, WorkerSpec, WorkerState
from llmserve.scheduler.models import Capacity

# How long the status still names a worker that is lost, in expiries.
_FORGOTTEN_AFTER_EXPIRIES = 60
_HANDS_OVER_TO = {WorkerRole.PREFILL: WorkerRole.DECODE, WorkerRole.DECODE: WorkerRole.PREFILL}
_DECODES = (WorkerRole.DECODE, WorkerRole.AGGREGATED)


class ClusterMembership:
    def __init__(self, clock: Clock, *, expiry_seconds: float) -> None:
        self._clock = clock
        self._expiry = expiry_seconds
        self._members: dict[WorkerId, ClusterMember] = {}
        self._slots: WeakValueDictionary[tuple[WorkerId, int], WorkerSlots] = WeakValueDictionary()
        self._available: dict[tuple[str, WorkerRole], list[ClusterMember]] = {}
        self._available_roles: dict[str, frozenset[WorkerRole]] = {}
        self._models: frozenset[str] = frozenset()
        self._check_at: float | None = None
        self.version = 0  # how often the set of registered workers has changed
        self.availability = 0  # how often it may have changed which workers can run which versions

    def __iter__(self) -> Iterator[ClusterMember]:
        """Yields every known worker, lost ones included."""
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"<ClusterMembership {[f'{m.spec.worker_id}:{m.state}' for m in self]}>"

    # -- what workers and apiservers say

    def register(self, spec: WorkerSpec) -> None:
        """Takes a new worker, a newer incarnation, or a repeated registration. Errors: InvalidRequest when
        a field is wrong, the epoch is older than a known one, or its KV or adapters do not fit the workers
        that it would exchange KV with."""
        self._check_fields(spec)
        self._check_peers(spec)
        known = self._members.get(spec.worker_id)
        if known and known.spec.epoch == spec.epoch:
            known.spec = spec
            self._hear(known)
        else:
            slots = self.slots(spec.worker_id, spec.epoch)
            self._members[spec.worker_id] = ClusterMember(
                spec, slots, self._clock.now(), interruptions=_interruptions_with_end(known)
            )
        self._check_after_expiry()
        self._changed()

    def heartbeat(
        self,
        worker_id: WorkerId,
        epoch: int,
        load: EngineLoad,
        *,
        draining: bool = False,
        reports: AdapterReports | None = None,
    ) -> ClusterMember:
        """draining: the worker is about to leave. reports: of its adapters; None: as it said last.
        Errors: NotFound when this incarnation is unknown and has to register."""
        member = self._members.get(worker_id)
        if member is None or member.spec.epoch != epoch:
            raise NotFound(f"worker {worker_id} of epoch {epoch} is not registered")
        member.load, member.draining = load, draining
        if reports is not None:
            member.hear_reports(reports)
        if member.order and member.order.drain is draining:
            member.order = None
        was = member.state
        self._hear(member)
        if was is WorkerState.LOST:
            self._check_after_expiry()
            self._changed()
        elif was is not member.state:
            self._availability_changed()
        return member

    def suspect(self, worker_id: WorkerId, epoch: int, reason: str) -> None:
        """A request failed on the worker: it is not used until its next heartbeat. Ignores an older epoch."""
        member = self._members.get(worker_id)
        if member and member.spec.epoch == epoch and member.state is WorkerState.AVAILABLE:
            member.state, member.reason = WorkerState.SUSPECT, reason
            member.interruptions += 1
            self._availability_changed()

    def hold_back(self, worker_id: WorkerId, lacks: str) -> None:
        """The worker takes no requests until it has what it lacks; empty: it has all. Ignores an unknown
        worker."""
        member = self._members.get(worker_id)
        if member is None or member.lacks == lacks:
            return
        member.lacks = lacks
        if member.state in (WorkerState.AVAILABLE, WorkerState.FETCHING):
            self._rank(member)
            self._availability_changed()

    def rule_out(self, worker_id: WorkerId, adapter: AdapterDigest, *, out: bool) -> None:
        """The worker gets no requests of this version, or may get them again. Ignores an unknown worker."""
        member = self._members.get(worker_id)
        if member is not None and (adapter in member.ruled_out) is not out:
            (member.ruled_out.add if out else member.ruled_out.remove)(adapter)
            self.availability += 1

    def order(self, worker_id: WorkerId, order: DrainOrder) -> ClusterMember:
        """An operator takes a worker out of service, or back. Errors: NotFound when it is not registered."""
        member = self._members.get(worker_id)
        if member is None or not member.registered:
            raise NotFound(f"worker {worker_id} is not registered: {self._names()} are")
        member.order = order
        if order.drain:
            self._rank(member)
            self._availability_changed()
        return member

    def order_of(self, worker_id: WorkerId) -> DrainOrder | None:
        """The operator's order that the worker has not carried out yet."""
        member = self._members.get(worker_id)
        return member.order if member else None

    def adapters(self, worker_id: WorkerId) -> Mapping[AdapterDigest, AdapterReport]:
        """What a worker said last of the adapters that it can run; nothing of an unknown one."""
        member = self._members.get(worker_id)
        return member.adapters if member else {}

    def deregister(self, worker_id: WorkerId, epoch: int) -> None:
        """The worker leaves in order. Ignores an older epoch or an unknown worker."""
        member = self._members.get(worker_id)
        if member and member.spec.epoch == epoch:
            del self._members[worker_id]
            self._changed()

    def expire(self) -> list[ClusterMember]:
        """Marks silent workers as lost and returns them; forgets those that were lost long ago."""
        now = self._clock.now()
        if self._check_at is None or now < self._check_at:
            return []
        lost = [m for m in self if m.registered and m.heard_at + self._expiry <= now]
        for member in lost:
            member.interruptions += member.state is WorkerState.AVAILABLE
            member.state = WorkerState.LOST
            member.reason = f"no heartbeat for {self._expiry:g} s"
        forgotten = [m for m in self if not m.registered and self._forget_at(m) <= now]
        for member in forgotten:
            del self._members[member.spec.worker_id]
        if lost:
            self._changed()
        self._plan_check()
        return lost

    def set_expiry(self, seconds: float) -> None:
        """Holds from now on. A worker that has been silent for longer is lost at the next `expire`."""
        self._expiry = seconds
        self._plan_check()

    def _plan_check(self) -> None:
        self._check_at = min(map(self._next_change, self), default=None)

    def next_expiry(self) -> float | None:
        """Time at which `expire` may have something to do: never late, at most one expiry early."""
        return self._check_at

    # -- what placement asks

    def available(self, model: str, role: WorkerRole) -> Sequence[ClusterMember]:
        """Workers that placements may use. The same list until something changes."""
        members = self._available.get((model, role))
        if members is None:
            members = [m for m in self.registered(model, role) if m.state is WorkerState.AVAILABLE]
            self._available[model, role] = members
        return members

    def available_roles(self, model: str) -> frozenset[WorkerRole]:
        """Roles with workers that placements may use. The same set until something changes."""
        roles = self._available_roles.get(model)
        if roles is None:
            roles = frozenset(role for role in WorkerRole if self.available(model, role))
            self._available_roles[model] = roles
        return roles

    def registered(self, model: str, role: WorkerRole) -> list[ClusterMember]:
        """Registered workers of a role, suspected ones included."""
        return [m for m in self if m.registered and m.spec.role is role and m.spec.model == model]

    def kv_sources(self, worker_id: WorkerId) -> list[ClusterMember]:
        """Workers that this one may fetch KV from; none for an unknown worker."""
        member = self._members.get(worker_id)
        if member is None or member.spec.role is not WorkerRole.DECODE:
            return []
        return self.registered(member.spec.model, WorkerRole.PREFILL)

    def models(self) -> frozenset[str]:
        """Models of the registered workers."""
        return self._models

    def capacities(self) -> dict[str, Capacity]:
        """What the registered workers of each model have together."""
        return {model: self._capacity(model) for model in sorted(self._models)}

    def _capacity(self, model: str) -> Capacity:
        registered = [member.spec for member in self if member.registered and member.spec.model == model]
        # Where no worker decodes, those that prefill do it all.
        decoding = [spec for spec in registered if spec.role in _DECODES] or registered
        engines = [spec.max_concurrency for spec in decoding]
        return Capacity(
            requests=sum(engines),
            kv_bytes_per_token=max(spec.kv_shape.bytes_per_token for spec in registered),
            hands_over=any(spec.role is WorkerRole.PREFILL for spec in registered),
            widest_engine=max(engines),
        )

    def slots(self, worker_id: WorkerId, epoch: int) -> WorkerSlots:
        """The slots of one incarnation, even of an unknown one: a placement may be older than this router."""
        slots = self._slots.get((worker_id, epoch))
        if slots is None:
            slots = self._slots[worker_id, epoch] = WorkerSlots()
        return slots

    # -- parts

    def _hear(self, member: ClusterMember) -> None:
        member.heard_at = self._clock.now()
        self._rank(member)

    def _rank(self, member: ClusterMember) -> None:
        """Sets the state of a worker that was heard and has failed no request since."""
        if member.to_leave:
            member.state, member.reason = WorkerState.DRAINING, "it is being drained"
        elif member.load.stalled:
            member.interruptions += member.state is WorkerState.AVAILABLE
            member.state, member.reason = WorkerState.SUSPECT, "its engine does not answer"
        elif member.lacks:
            member.state, member.reason = WorkerState.FETCHING, member.lacks
        else:
            member.state, member.reason = WorkerState.AVAILABLE, ""

    def _names(self) -> str:
        return ", ".join(sorted(m.spec.worker_id for m in self if m.registered)) or "none"

    def _check_after_expiry(self) -> None:
        expiry = self._clock.now() + self._expiry
        self._check_at = expiry if self._check_at is None else min(self._check_at, expiry)

    def _changed(self) -> None:
        self.version += 1
        self._availability_changed()
        self._models = frozenset(m.spec.model for m in self if m.registered)

    def _availability_changed(self) -> None:
        self.availability += 1
        self._available.clear()
        self._available_roles.clear()

    def _next_change(self, member: ClusterMember) -> float:
        return member.heard_at + self._expiry if member.registered else self._forget_at(member)

    def _forget_at(self, member: ClusterMember) -> float:
        return member.heard_at + self._expiry * _FORGOTTEN_AFTER_EXPIRIES

    def _check_fields(self, spec: WorkerSpec) -> None:
        if not spec.worker_id or not spec.address or not spec.model:
            raise InvalidRequest("worker_id, address and model must be set")
        if spec.max_concurrency < 1:
            raise InvalidRequest(
                f"max_concurrency of {spec.worker_id} is {spec.max_concurrency}, not positive"
            )
        known = self._members.get(spec.worker_id)
        if known and spec.epoch < known.spec.epoch:
            raise InvalidRequest(
                f"epoch {spec.epoch} of {spec.worker_id} is older than {known.spec.epoch}: "
                "a newer process has its name"
            )

    def _check_peers(self, spec: WorkerSpec) -> None:
        peer_role = _HANDS_OVER_TO.get(spec.role)
        if peer_role is None:
            return
        for peer in self.registered(spec.model, peer_role):
            differences = spec.differences(peer.spec)
            if differences and peer.spec.worker_id != spec.worker_id:
                pair = (
                    f"{spec.role} worker {spec.worker_id} and {peer.spec.role} worker {peer.spec.worker_id}"
                )
                raise InvalidRequest(f"{pair} cannot serve requests together: {', '.join(differences)}")


def _interruptions_with_end(older: ClusterMember | None) -> int:
    """Interruptions of a worker that registers anew. The end of an incarnation that did not deregister is
    one, unless it was noticed before."""
    if older is None:
        return 0
    return older.interruptions + (older.state is WorkerState.AVAILABLE)
