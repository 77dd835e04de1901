"""One adapter as the book knows it, from its load to its end. Pure."""

from dataclasses import asdict, dataclass, field

from llmserve.core import errors
from llmserve.core.adapters import (
    BASE_MODEL,
    AdapterOrder,
    AdapterReport,
    AdapterState,
    AdapterTier,
    NamedAdapter,
    nearest,
)
from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.router.workers.worker import ClusterMember

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_WAYS_OUT = (AdapterState.DRAINING, AdapterState.GONE)


@dataclass(frozen=True, slots=True)
class AdapterWish:
    """What somebody asks for: that requests may use this adapter of the model under this name. tier: at least
    this near to every worker from the start. pinned: it stays where it is wanted. implicit: a request has
    named its source, and nobody has named it: it goes when no request has used it for long."""

    name: str
    source: str
    tier: AdapterTier = AdapterTier.DISK
    pinned: bool = False
    implicit: bool = False

    @property
    def wanted(self) -> AdapterTier:
        """The tier where every worker is to have it, or nearer. A pinned one is at least in DRAM."""
        return nearest(self.tier, AdapterTier.DRAM) if self.pinned else self.tier


@dataclass(slots=True)
class Pause:
    """A worker could not fetch an adapter, `failures` times in a row, and is not asked again before `until`.
    message: why it failed last."""

    failures: int
    until: float
    message: str


@dataclass(slots=True, eq=False)
class Registration:
    """A name of a model for the adapter at a source. number: larger than those of all earlier ones, in every
    term. resolver: the worker that computes the digest. error: name of a class in core/errors.py with
    `message`, when it failed, or was given up before it was ready. idle_since: while it is draining, the time
    since when no request has it. used_at: when somebody asked for it last, in this term. released: workers
    are told to let it go. pauses: by worker. been_near: the incarnations of workers that have had it as near
    as it is wanted. asked: as in AdapterOrder, in this term."""

    number: int
    model: str
    wish: AdapterWish
    state: AdapterState = AdapterState.REGISTERED
    digest: AdapterDigest = BASE_MODEL
    rank: int = 0
    size_bytes: int = 0
    error: str = ""
    message: str = ""
    resolver: WorkerId | None = None
    idle_since: float | None = None
    used_at: float = float("-inf")
    released: bool = False
    pauses: dict[WorkerId, Pause] = field(default_factory=dict)
    been_near: set[tuple[WorkerId, int]] = field(default_factory=set)
    asked: int = 0

    @property
    def key(self) -> tuple[str, str]:
        return self.model, self.wish.name

    @property
    def pending(self) -> bool:
        return self.state in (AdapterState.REGISTERED, AdapterState.FETCHING)

    @property
    def leaving(self) -> bool:
        return self.state in _WAYS_OUT

    @property
    def expires(self) -> bool:
        """Whether it ends when nobody uses it."""
        return self.wish.implicit and not self.wish.pinned and not self.leaving

    @property
    def usable(self) -> bool:
        """Whether requests may have its version."""
        wanted = self.pending or self.state in (AdapterState.READY, AdapterState.DRAINING)
        return bool(self.digest) and wanted and not self.released

    def saved(self) -> dict[str, object]:
        """Returns what another router needs to know of it, as JSON has it."""
        return {
            **asdict(self.wish),
            "number": self.number,
            "model": self.model,
            "state": self.state,
            "digest": self.digest,
            "rank": self.rank,
            "size_bytes": self.size_bytes,
            "error": self.error,
            "message": self.message,
            "released": self.released,
        }

    def named(self) -> NamedAdapter:
        wish = self.wish
        return NamedAdapter(
            wish.name, self.digest, self.model, wish.source, self.rank, self.size_bytes, self.number
        )

    def fail(self, error: str, message: str) -> None:
        """One that only requests have asked for leaves no name. Others stay, so that operators see why."""
        self.state = AdapterState.DRAINING if self.wish.implicit else AdapterState.FAILED
        self.error, self.message = error, message

    def try_again(self) -> None:
        """Begins anew after it has failed: its source may be another one by now."""
        self.state, self.digest, self.error, self.message = AdapterState.REGISTERED, BASE_MODEL, "", ""

    # -- one worker

    def report_of(self, member: ClusterMember) -> AdapterReport | None:
        return member.reports.get(self.number)

    def confirmed_by(self, member: ClusterMember) -> bool:
        """Whether the worker can run it. Before it is ready it has to have been where it is wanted; since
        then it may have gone to a tier that is farther away."""
        report = self.report_of(member)
        if report is None or report.error or not self.digest:
            return False
        if self.wish.wanted is AdapterTier.SOURCE and not report.digest:
            return True
        is_near = self.state is AdapterState.READY or _incarnation(member) in self.been_near
        return report.digest == self.digest and is_near

    def note_nearness(self, member: ClusterMember) -> None:
        if self.near_enough(member):
            self.been_near.add(_incarnation(member))

    def near_enough(self, member: ClusterMember) -> bool:
        """Whether the worker has it at least as near as it is wanted."""
        report = self.report_of(member)
        return report is not None and not report.error and report.tier.is_at_least(self.wish.wanted)

    def paused(self, member: ClusterMember, now: float) -> bool:
        """A pause lasts until the worker has dropped its report, too: what it reports then is of a new
        try."""
        pause = self.pauses.get(member.spec.worker_id)
        return pause is not None and (now < pause.until or self._has_failed(member))

    def _has_failed(self, member: ClusterMember) -> bool:
        report = self.report_of(member)
        return report is not None and bool(report.error)

    def pause(self, worker_id: WorkerId, now: float, message: str) -> None:
        known = self.pauses.get(worker_id)
        failures = known.failures + 1 if known else 1
        seconds = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 16))
        self.pauses[worker_id] = Pause(failures, now + seconds, message)

    def order_for(self, worker_id: WorkerId, *, awaited: bool) -> AdapterOrder | None:
        """What the worker is to hold, unless it has to pause; None: nothing. awaited: it is to bring the
        version into DRAM for requests that wait."""
        if self.released or self.state is AdapterState.FAILED:
            return None
        tier = self.wish.wanted
        if awaited:
            tier = nearest(tier, AdapterTier.DRAM)
        if not self.digest:
            if worker_id != self.resolver:
                return None
            tier = nearest(tier, AdapterTier.DISK)  # to compute it means to fetch it
        return AdapterOrder(self.number, self.wish.source, self.digest, tier, self.wish.pinned, self.asked)


def _incarnation(member: ClusterMember) -> tuple[WorkerId, int]:
    return member.spec.worker_id, member.spec.epoch


def is_final(error: str) -> bool:
    """Whether another try would end with this error again. error: name of its class."""
    found = getattr(errors, error, None)
    return isinstance(found, type) and issubclass(found, errors.InvalidRequest | errors.NotFound)
