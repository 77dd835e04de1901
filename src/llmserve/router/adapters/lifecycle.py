"""The life of registrations: takes what workers report, and decides the state of each registration and what
each worker is ordered to hold. Pure.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set

from llmserve.core.adapters import AdapterReport, AdapterState
from llmserve.core.clock import Clock
from llmserve.core.errors import NotFound
from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.router.adapters.orders import OrderBoard
from llmserve.router.adapters.registration import Registration, is_final
from llmserve.router.adapters.table import RegistrationTable
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import ClusterMember

# An apiserver gives a request its version, and then asks for a place: this long after the name has moved,
# such a request may still come. Apiservers that turn to another router take about as long, too.
LINGER_SECONDS = 5.0
_USE_CHECK_SECONDS = 1.0
# Adapters that requests have loaded by their source. A client comes back within a conversation, so an hour
# spares it a second load. Each costs workers an order and a report, and apiservers a name.
UNUSED_SECONDS = 3600.0
MOST_IMPLICIT = 64
_LONG_AGO = float("-inf")
FETCHES_ADAPTERS = "it fetches adapters"


class AdapterLifecycle:
    """users: counts the requests that wait or run with a version. changes: grows when anything changes that
    somebody may wait for. version: grows when anything changes that is saved. fetch_failures: how often a
    worker could not fetch an adapter that is tried again. prefetches: how often a worker was ordered to bring
    one near for requests that wait.

    A registration is reviewed whenever something happened that may concern it. A review looks at everything
    that is known, so it does not depend on earlier reviews."""

    def __init__(
        self, clock: Clock, membership: ClusterMembership, users: Callable[[AdapterDigest], int]
    ) -> None:
        self._clock, self._membership, self._users = clock, membership, users
        self.table, self.orders = RegistrationTable(), OrderBoard()
        self.changes = self.version = self.fetch_failures = self.prefetches = 0
        self._members: dict[str, list[ClusterMember]] = {}
        self._members_version: int | None = None  # of the membership that `_members` shows
        self._heard: dict[WorkerId, Mapping[int, AdapterReport]] = {}  # the reports that were reviewed last
        self._missing: dict[WorkerId, set[int]] = {}  # ready ones that the worker has not got yet
        self._awaited_by: dict[tuple[str, AdapterDigest], Set[WorkerId]] = {}  # by model and version
        self._due: dict[int, float] = {}

    # -- what happened

    def add(self, registration: Registration) -> None:
        self.table.add(registration)
        self.changed(registration)

    def drain(self, registration: Registration, error: str = "", message: str = "") -> None:
        """Takes its name away from a registration, which then ends with its last request. error, message: as
        in Registration, for one that never was ready."""
        registration.state, registration.error, registration.message = AdapterState.DRAINING, error, message
        registration.idle_since = None if registration.digest else _LONG_AGO
        self.changed(registration)

    def changed(self, registration: Registration) -> None:
        """Called when something that is saved of a registration was changed, because somebody asked."""
        self.version += 1
        registration.used_at = self._clock.now()
        self.review(registration)

    def heard(self, member: ClusterMember) -> None:
        """A worker has sent a heartbeat, perhaps with reports."""
        before = self._heard.get(member.spec.worker_id, member.reports)
        if before is not member.reports:
            self._heard[member.spec.worker_id] = member.reports
            numbers = sorted(before.keys() | member.reports.keys())
            pairs = ((one, before.get(one), member.reports.get(one)) for one in numbers)
            # Most are the same object, since only what changed travels.
            self._review_all([one for one, old, new in pairs if old is not new and old != new])

    def follow_members(self) -> None:
        """Workers may have come or gone."""
        if self._members_version == self._membership.version:
            return
        self._members_version = self._membership.version
        members = [m for m in self._membership if m.registered and m.spec.lora.slots]
        self._members = {model: [] for model in self._membership.models()}
        for member in members:
            self._members[member.spec.model].append(member)
        self._heard = {member.spec.worker_id: member.reports for member in members}
        self._missing = {name: self._missing.get(name, set()) for name in self._heard}
        self.orders.follow(self._heard.keys())
        self._review_all([registration.number for registration in self.table])
        for name, missing in self._missing.items():  # one that was lost may come back with all it lacked
            self._membership.hold_back(name, FETCHES_ADAPTERS if missing else "")

    def tick(self) -> None:
        now = self._clock.now()
        self._review_all([number for number, due in self._due.items() if due <= now])

    def use(self, model: str, digest: AdapterDigest) -> bool:
        """A request comes with this version. Returns whether workers of the model are ordered to hold it."""
        found = [one for one in self.table.of_version(model, digest) if one.usable]
        for registration in found:
            registration.used_at = self._clock.now()
        return bool(found)

    def bring_near(self, model: str, digest: AdapterDigest, workers: Set[WorkerId]) -> None:
        """Orders these workers, and no others, to have the version in DRAM for requests that wait."""
        before = self._awaited_by.pop((model, digest), frozenset())
        if workers:
            self._awaited_by[model, digest] = workers
        self.prefetches += len(workers - before)
        self.changes += 1
        for registration in self.table.of_version(model, digest):
            self._order(registration, self.members(model))

    def bound_implicit(self) -> None:
        """Ends the implicit registrations that were used longest ago, when there are too many. Those that
        are under way or in use stay."""
        found = [one for one in self.table if one.expires]
        unused = [one for one in found if not one.pending and self._is_unused(one, 0.0)]
        unused.sort(key=lambda one: one.used_at)
        for registration in unused[: max(0, len(found) - MOST_IMPLICIT)]:
            self.drain(registration)

    def dropped(self, digest: AdapterDigest) -> None:
        """No KV manager has blocks of this version any more."""
        self.table.leftovers.discard(digest)
        self.version += 1

    # -- what is

    def next_due(self) -> float | None:
        return min(self._due.values(), default=None)

    def members(self, model: str) -> Sequence[ClusterMember]:
        """The registered workers of a model that run adapters."""
        return self._members.get(model, ())

    def review(self, registration: Registration) -> None:
        """Brings a registration, the orders of its workers and their availability up to date."""
        if registration.expires and self._is_unused(registration, UNUSED_SECONDS):
            self._end_unused(registration)
            return
        members, before = self.members(registration.model), registration.saved()
        for member in members:
            self._hear_report(registration, member)
        match registration.state:
            case AdapterState.REGISTERED | AdapterState.FETCHING:
                self._fetch(registration, members)
            case AdapterState.DRAINING:
                self._let_go(registration, members)
        self._order(registration, members)
        self._hold_back(registration, members)
        self._plan(registration)
        self.changes += 1
        self.version += registration.saved() != before

    # -- parts

    def _review_all(self, numbers: Iterable[int]) -> None:
        """Reviews all but those that are unknown, or are gone when their turn comes."""
        for number in numbers:
            if (registration := self.table.get(number)) is not None:
                self.review(registration)

    def _is_unused(self, registration: Registration, seconds: float) -> bool:
        """Returns whether nobody has asked for it for so long, and no request has it."""
        is_old = self._clock.now() - registration.used_at >= seconds
        return is_old and not self._in_use(registration, self.members(registration.model))

    def _end_unused(self, registration: Registration) -> None:
        if registration.pending:
            self.drain(registration, NotFound.__name__, "no request has asked for it since")
        else:
            self.drain(registration)

    def _hear_report(self, registration: Registration, member: ClusterMember) -> None:
        report, worker_id = registration.report_of(member), member.spec.worker_id
        if report is None:
            return
        if report.error:
            if not self.orders.given(worker_id, registration.number):
                return
            if registration.pending and is_final(report.error):
                registration.fail(report.error, f"worker {worker_id}: {report.message}")
            else:
                registration.pause(worker_id, self._clock.now(), report.message)
                self.fetch_failures += 1
        elif report.digest and not registration.digest and registration.pending:
            registration.digest, registration.rank = report.digest, report.rank
            registration.size_bytes, registration.resolver = report.size_bytes, None
            self.table.index(registration)
        registration.note_nearness(member)
        if registration.confirmed_by(member):
            registration.pauses.pop(worker_id, None)

    def _fetch(self, registration: Registration, members: Sequence[ClusterMember]) -> None:
        if not registration.digest:
            registration.resolver = self._resolver(registration, members)
        if registration.digest and members and all(map(registration.confirmed_by, members)):
            self._become_ready(registration)
        elif members:
            registration.state = AdapterState.FETCHING

    def _resolver(self, registration: Registration, members: Sequence[ClusterMember]) -> WorkerId | None:
        """Returns the worker that computes the digest: the one that does so already, or the one that has the
        fewest others to compute. None: there is no worker, or each has to pause."""
        now = self._clock.now()
        able = [m.spec.worker_id for m in members if not registration.paused(m, now)]
        if registration.resolver in able:
            return registration.resolver
        return min(able, key=lambda name: (self.orders.unresolved(name), name), default=None)

    def _become_ready(self, registration: Registration) -> None:
        registration.state = AdapterState.READY
        for one in self.table.named(*registration.key):
            if one is not registration and not one.leaving:
                self.drain(one)

    def _let_go(self, registration: Registration, members: Sequence[ClusterMember]) -> None:
        now = self._clock.now()
        if not registration.digest or self._has_twin(registration):
            registration.idle_since = _LONG_AGO
        elif self._in_use(registration, members):
            registration.idle_since = None
        elif registration.idle_since is None:
            registration.idle_since = now
        idle = registration.idle_since is not None and now - registration.idle_since >= LINGER_SECONDS
        registration.released = registration.released or idle
        if registration.released and not any(map(registration.report_of, members)):
            registration.state = AdapterState.GONE
            self.table.remove(registration)

    def _has_twin(self, registration: Registration) -> bool:
        """Whether another registration makes workers of the model keep the same version."""
        others = self.table.of_version(registration.model, registration.digest)
        return any(one.usable and not one.leaving for one in others)

    def _in_use(self, registration: Registration, members: Iterable[ClusterMember]) -> bool:
        reports = filter(None, map(registration.report_of, members))
        return self._users(registration.digest) > 0 or any(report.running for report in reports)

    def _order(self, registration: Registration, members: Iterable[ClusterMember]) -> None:
        now = self._clock.now()
        awaited_by = self._awaited_by.get((registration.model, registration.digest), frozenset())
        for member in members:
            worker_id = member.spec.worker_id
            order = registration.order_for(worker_id, awaited=worker_id in awaited_by)
            self.orders.put(
                worker_id, registration.number, None if registration.paused(member, now) else order
            )

    def _hold_back(self, registration: Registration, members: Sequence[ClusterMember]) -> None:
        """A worker that has not got every ready version yet takes no requests while another of its role has
        it. One that has failed to get a version, or waits for it like all others, takes those of the rest: a
        source that is away must not stop the model."""
        confirmed = {member for member in members if registration.confirmed_by(member)}
        served = {member.spec.role for member in confirmed}
        is_ready, number = registration.state is AdapterState.READY, registration.number
        for member in members:
            worker_id = member.spec.worker_id
            missing, has_failed = self._missing[worker_id], worker_id in registration.pauses
            lacks = is_ready and not has_failed and member not in confirmed
            is_held = lacks and member.spec.role in served
            if registration.digest:
                self._membership.rule_out(
                    worker_id, registration.digest, out=has_failed or (lacks and not is_held)
                )
            if is_held:
                missing.add(number)
            elif number in missing:
                missing.remove(number)
            else:
                continue
            self._membership.hold_back(worker_id, FETCHES_ADAPTERS if missing else "")

    def _plan(self, registration: Registration) -> None:
        """Notes when a registration is to be reviewed even if nothing happens."""
        now, times = self._clock.now(), [pause.until for pause in registration.pauses.values()]
        if registration.state is AdapterState.DRAINING and not registration.released:
            idle_since = registration.idle_since
            times.append(now + _USE_CHECK_SECONDS if idle_since is None else idle_since + LINGER_SECONDS)
        if registration.expires:
            times.append(max(registration.used_at + UNUSED_SECONDS, now + _USE_CHECK_SECONDS))
        due = min((time for time in times if time > now), default=None)
        if due is None or registration.state is AdapterState.GONE:
            self._due.pop(registration.number, None)
        else:
            self._due[registration.number] = due
