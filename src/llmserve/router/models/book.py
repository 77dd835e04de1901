"""The models that the cluster is to have: takes what operators, the manifest, apiservers and whoever runs the
processes say, and decides what is to run and for which models requests are taken. Pure.

A load makes a registration. Whoever runs the processes fetches the model and starts its engines. From then on
apiservers take its requests, which wait for the engines in the queue. A model that is swapped for another one
stays until that one is prepared; then it drains, and the engines of the other one get its place.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from llmserve.config.messages import did_you_mean
from llmserve.config.wanted_models import AnsweringModels, ModelOrder, ModelReport, ModelState, ServedName
from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest, NotFound, StartFailed, Unavailable
from llmserve.router.models.registration import ModelRegistration
from llmserve.router.models.snapshot import ModelBookSnapshot

# A request may have found the model at its apiserver, and ask for a place this long after others ended.
LINGER_SECONDS = 0.5
USE_CHECK_SECONDS = 0.25
ON_KUBERNETES = (
    "on Kubernetes models come and go with the manifest, unless deployment.k8s.manage_models is set: change "
    "`models` there, and run `llmserve up --apply`"
)


class ModelBook:
    """users: counts the requests that wait or run with a model. apiservers: what each one says that has a
    session; None: nothing yet. manages: models may come and go. drain_seconds: the time that requests of a
    model have when it leaves. version: grows when anything changes that is saved, ordered or shown."""

    def __init__(
        self,
        clock: Clock,
        users: Callable[[str], int],
        apiservers: Callable[[], Iterable[AnsweringModels | None]],
        *,
        drain_seconds: float,
        manages: bool,
    ) -> None:
        self.users, self.drain_seconds, self.manages = users, drain_seconds, manages
        self._clock, self._apiservers = clock, apiservers
        self._registrations: dict[int, ModelRegistration] = {}
        self._declared: Mapping[str, str] = {}
        self._last_number = 0
        self._served: tuple[ServedName, ...] = ()
        self._served_version = -1  # of the registrations that they are from
        self._saved = (-1, "")
        self.version = 0

    def __iter__(self) -> Iterator[ModelRegistration]:
        """Yields all that are not gone, by number."""
        return iter(tuple(self._registrations.values()))

    def __repr__(self) -> str:
        return f"<ModelBook {[f'{one.name}#{one.number}:{one.state}' for one in self]}>"

    # -- what operators ask

    def load(self, name: str, entry: str, swap: str = "", *, pull: bool = False) -> ModelRegistration:
        """entry: JSON, as an entry of `models` in the manifest; the caller has checked it. swap: name of the
        model that leaves for it; empty: none. pull: it is fetched and checked only, and a load of this name
        may follow, also one with `swap`. A load of the same entry joins the one that is there. Errors:
        InvalidRequest; NotFound for a model that is to leave, and is not there; Unavailable while a model of
        this name leaves."""
        self._check_managed()
        if pull and swap:
            raise InvalidRequest("swap: a pull starts no engines, so it takes nobody's place")
        known = self.named(name)
        if known is not None and known.wanted:
            if known.entry == entry and (swap in ("", known.swap) or self.named(swap) is None):
                return known
            raise InvalidRequest(f"model {name} is {known.state}, from {known.source}: unload it before")
        if known is not None and known.state is ModelState.DRAINING:
            raise Unavailable(f"model {name} is being unloaded: try again", retry_after_seconds=1.0)
        if swap:
            self._check_swap(swap)
        if known is not None and known.ordered:
            if known.entry == entry:
                return self._go_on(known, swap, pull)
            self._remove(known)
        return self._register(name, entry, swap=swap, pull=pull)

    def unload(self, name: str) -> ModelRegistration:
        """Returns the registration whose end the caller may wait for. One that is draining is unloaded
        already. Errors: NotFound; InvalidRequest for the last one."""
        self._check_managed()
        found = self._known(name)
        if found.state is ModelState.FAILED:
            self._remove(found)
        elif found.pull and found.ordered:
            self._drain(found)
        elif found.wanted:
            if not any(one.wanted for one in self if one is not found):
                raise InvalidRequest(f"model {name} is the only one: load another one before, or swap it")
            self._drain(found)
        return found

    def named(self, name: str) -> ModelRegistration | None:
        """Returns the latest registration of this name."""
        found = [one for one in self if one.name == name]
        return found[-1] if found else None

    # -- what the manifest says

    def declare(self, entries: Mapping[str, str]) -> None:
        """Takes in the models that the manifest has at the start, by name. An entry that was the same before,
        also for an earlier router, changes nothing: operators may have loaded or unloaded the model since."""
        before, self._declared = self._declared, dict(entries)
        for name in (name for name in before if name not in entries):
            if (one := self.named(name)) is not None and one.declared:
                self._remove(one)
        for name, entry in entries.items():
            if before.get(name) != entry:
                for one in (one for one in self if one.name == name):
                    self._remove(one)
                self._register(name, entry, declared=True)
        self._changed()

    # -- what whoever runs the processes says

    def heard(self, reports: Sequence[ModelReport]) -> None:
        """reports: of all that there is."""
        by_number = {report.number: report for report in reports}
        for one in self:
            before = one.saved(), one.detail, one.engines_run
            self._hear(one, by_number.get(one.number))
            if before != (one.saved(), one.detail, one.engines_run):
                self._changed()
        self.follow_apiservers()

    def follow_apiservers(self) -> None:
        """Called when one has said for which models it takes requests, or has come or gone. A model is ready
        when its engines run and each apiserver takes its requests."""
        said = [each for each in self._apiservers() if each is not None]
        for one in self:
            if one.state is not ModelState.STARTING:
                continue
            failed = next((each.failed[one.name] for each in said if one.name in each.failed), "")
            if failed and not one.declared:
                self._fail(one, StartFailed.__name__, f"an apiserver cannot take its requests: {failed}")
            elif one.engines_run and all(one.name in each.names for each in said):
                one.become_ready()
                self._changed()

    # -- time

    def tick(self) -> None:
        for one in self:
            if one.state is ModelState.DRAINING and not one.released:
                self._let_go(one)

    def next_due(self) -> float | None:
        """Time on the clock at which tick has something to do; None: not before something happens."""
        draining = any(one.state is ModelState.DRAINING and not one.released for one in self)
        return self._clock.now() + USE_CHECK_SECONDS if draining else None

    # -- what is

    def orders(self) -> list[ModelOrder]:
        """Returns what is to be there, all of it."""
        here = {one.name for one in self if one.state is ModelState.DRAINING}
        return [
            one.order(may_start=not one.swap or (one.state is ModelState.STARTING and one.swap not in here))
            for one in self
            if one.state is not ModelState.FAILED and not one.released
        ]

    def served(self) -> tuple[ServedName, ...]:
        """Returns the models for which requests are to be taken, as the same object until they change."""
        if self._served_version != self.version:
            self._served_version = self.version
            served = tuple(one.served() for one in self if one.takes_requests)
            self._served = self._served if served == self._served else served
        return self._served

    # -- another router's term before this one

    def snapshot(self) -> str:
        """JSON for ModelBookSnapshot; empty: there is nothing to save. The same text until that changes."""
        if not self.manages or not (self._registrations or self._declared):
            return ""
        if self._saved[0] != self.version:
            text = ModelBookSnapshot(self._last_number, tuple(self), self._declared).to_json()
            self._saved = self.version, text
        return self._saved[1]

    def take_over(self, snapshot: ModelBookSnapshot, epoch: int) -> None:
        """Called before any other event. epoch: number of the term; numbers and versions are larger than in
        any term before."""
        self._last_number = max(snapshot.last_number, epoch)
        self.version = epoch
        self._declared = snapshot.declared
        for one in snapshot.registrations:
            one.drains_since = self._clock.now()
            if one.state is ModelState.FAILED:
                one.begin_again()
            self._registrations[one.number] = one

    # -- parts

    def _hear(self, one: ModelRegistration, report: ModelReport | None) -> None:
        if one.state is ModelState.DRAINING and report is None:
            self._remove(one)
        elif one.ordered and report is None:
            one.begin_again()
        elif one.ordered and report is not None and report.error:
            self._fail(one, report.error, report.message)
        elif one.pending and report is not None:
            one.hear(report)
            self._begin_swap(one)

    def _go_on(self, pulled: ModelRegistration, swap: str, pull: bool) -> ModelRegistration:
        """Returns a model that is pulled; its load goes on from there."""
        if not pull:
            pulled.load(swap)
            self._changed()
        return pulled

    def _begin_swap(self, one: ModelRegistration) -> None:
        """Called when a model is prepared: the one that it takes the place of leaves."""
        leaving = self.named(one.swap) if one.swap and one.state is ModelState.STARTING else None
        if leaving is not None and leaving.wanted and not one.swapped:
            one.swapped = leaving.entry
            self._drain(leaving)

    def _fail(self, one: ModelRegistration, error: str, message: str) -> None:
        """A model that has left for this one comes back."""
        one.fail(error, message)
        leaving = self.named(one.swap)
        if leaving is not None and leaving.state is ModelState.DRAINING and not leaving.released:
            leaving.state = ModelState.STARTING  # until its next report
        elif one.swapped and (leaving is None or not leaving.wanted):
            self._register(one.swap, one.swapped)
        self._changed()

    def _register(
        self, name: str, entry: str, *, swap: str = "", declared: bool = False, pull: bool = False
    ) -> ModelRegistration:
        for failed in [one for one in self if one.name == name and one.state is ModelState.FAILED]:
            self._remove(failed)
        self._last_number += 1
        made = ModelRegistration(self._last_number, name, entry, declared, swap, pull=pull)
        if not self.manages:
            made.state = ModelState.READY
        self._registrations[made.number] = made
        self._changed()
        return made

    def _drain(self, one: ModelRegistration) -> None:
        one.drain(self._clock.now())
        self._changed()

    def _let_go(self, one: ModelRegistration) -> None:
        now = self._clock.now()
        if self.users(one.name):
            one.idle_since = None
        elif one.idle_since is None:
            one.idle_since = now
        is_idle = one.idle_since is not None and now - one.idle_since >= LINGER_SECONDS
        if is_idle or now - one.drains_since >= self.drain_seconds:
            one.released = True
            self._changed()

    def _remove(self, one: ModelRegistration) -> None:
        if one.state is not ModelState.FAILED:
            one.state = ModelState.GONE
        del self._registrations[one.number]
        self._changed()

    def _changed(self) -> None:
        self.version += 1

    def _check_managed(self) -> None:
        if not self.manages:
            raise InvalidRequest(ON_KUBERNETES)

    def _check_swap(self, name: str) -> None:
        if not self._known(name).wanted:
            raise InvalidRequest(f"model {name} is leaving or has failed: there is nothing to swap")
        other = next((one for one in self if one.pending and one.swap == name), None)
        if other is not None:
            raise InvalidRequest(f"model {name} is being swapped for {other.name}")

    def _known(self, name: str) -> ModelRegistration:
        found = self.named(name)
        if found is None:
            raise NotFound(f"there is no model {name}{did_you_mean(name, [one.name for one in self])}")
        return found
