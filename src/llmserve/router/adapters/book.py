"""The adapters of all models: takes what operators, the manifest and workers say, and decides what each
worker is to hold and which names requests may use. Pure.

A load makes a registration. One worker computes the digest of what is at its source. Then all workers of the
model are ordered to hold that version, and when each has confirmed it, the name is ready. A name that is
loaded again moves to its new version at that moment. The old one is draining: workers keep it while requests
have it, and are told to let it go when none has had it for a while.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from llmserve.config.messages import did_you_mean
from llmserve.core.adapters import AdapterState, AdapterTier, NamedAdapter, is_digest, nearest
from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.ids import AdapterDigest
from llmserve.router.adapters.lifecycle import AdapterLifecycle
from llmserve.router.adapters.registration import AdapterWish, Registration
from llmserve.router.adapters.snapshot import AdapterSnapshot
from llmserve.router.workers.membership import ClusterMembership


class AdapterBook:
    """users: counts the requests that wait or run with a version. lifecycle: is told what workers report and
    that time passes."""

    def __init__(
        self, clock: Clock, membership: ClusterMembership, users: Callable[[AdapterDigest], int]
    ) -> None:
        self._membership, self.users = membership, users
        self.lifecycle = AdapterLifecycle(clock, membership, users)
        self._last_number = 0
        self._declared: dict[str, Mapping[str, AdapterWish]] = {}  # by model and name, as applied last
        self._names: tuple[NamedAdapter, ...] = ()
        self._names_version = 0  # of the registrations that they are from
        self._saved: tuple[int, str] | None = None

    def __iter__(self) -> Iterator[Registration]:
        """Yields all that are not gone, by number."""
        return iter(self.lifecycle.table)

    def __repr__(self) -> str:
        return f"<AdapterBook {[f'{one.wish.name}#{one.number}:{one.state}' for one in self]}>"

    # -- what operators ask

    def load(self, model: str, wish: AdapterWish) -> Registration:
        """model: empty: the only one. A load of the same name and source joins the one that is under way,
        which then goes to the nearer tier of both, and is pinned if one of them is. A name stays implicit
        until anybody loads it by name. Requests choose by the name alone, so that no other model may have it.
        Errors: InvalidRequest when the name cannot be used, or no worker runs adapters; NotFound for an
        unknown model."""
        model = self._model(model)
        self._check_name(model, wish.name)
        self._check_workers(model)
        named = self._named(model, wish.name)
        wish = replace(wish, implicit=wish.implicit and all(one.wish.implicit for one in named))
        for one in named:
            if one.pending and one.wish.source == wish.source:
                one.wish = replace(one.wish, implicit=wish.implicit)
                self.keep(one, nearest(one.wish.tier, wish.tier), pinned=one.wish.pinned or wish.pinned)
                return one
        return self._register(model, wish)

    def unload(self, model: str, name: str) -> Registration:
        """Returns the registration whose end the caller may wait for. A name that is draining is unloaded
        already. model: empty: that of the adapter. Errors: NotFound."""
        model = self._model_of(model, name)
        all_of_name = self.lifecycle.table.named(model, name)
        if not all_of_name:
            raise self._unknown(model, name)
        current = self._current(model, name) or all_of_name[-1]
        for one in self._named(model, name):
            self._drain(one, NotFound(f"adapter {name} was unloaded before it was ready"))
        return current

    def find(self, model: str, name: str) -> Registration:
        """Returns the registration that requests of this name use, or will use. model: empty: that of the
        adapter. Errors: NotFound."""
        model = self._model_of(model, name)
        current = self._current(model, name)
        if current is None:
            raise self._unknown(model, name)
        return current

    def keep(
        self, registration: Registration, tier: AdapterTier | None = None, *, pinned: bool | None = None
    ) -> None:
        """Wants an adapter nearer to the workers, or less near. None: as before. A device slot is wanted anew
        by each call that names it."""
        before = registration.wish
        registration.asked += tier is AdapterTier.DEVICE
        registration.wish = replace(
            before, tier=tier or before.tier, pinned=before.pinned if pinned is None else pinned
        )
        registration.been_near.clear()
        self.lifecycle.changed(registration)

    # -- what the manifest says

    def declare(self, model: str, wishes: Iterable[AdapterWish]) -> None:
        """Takes in the adapters that the manifest has now. An entry that was the same before, also for an
        earlier router, changes nothing: operators may have loaded or unloaded the name since."""
        before, after = self._declared.get(model, {}), {wish.name: wish for wish in wishes}
        self._declared[model] = after
        self.lifecycle.version += before != after
        for name in (name for name in before if name not in after):
            for one in self._named(model, name):
                if one.wish.source == before[name].source:
                    self._drain(one, NotFound(f"adapter {name} was taken out of the manifest"))
        for name, wish in after.items():
            known = before.get(name)
            if known is None or known.source != wish.source:
                for other in self._of_other_models(model, name):
                    self._drain(other, InvalidRequest(f"the manifest gives the name {name} to model {model}"))
                self._register(model, wish)
            elif known != wish and (current := self._current(model, name)) is not None:
                self.keep(current, wish.tier, pinned=wish.pinned)

    # -- what is

    def names(self) -> tuple[NamedAdapter, ...]:
        """Returns the names that requests may use now, as the same object until they change."""
        if self._names_version != self.lifecycle.version:
            self._names_version = self.lifecycle.version
            names = tuple(one.named() for one in self if one.state is AdapterState.READY)
            self._names = self._names if names == self._names else names
        return self._names

    def refusal(self, model: str, digest: AdapterDigest) -> NotFound | None:
        """A request comes with this version. Returns its error; None when workers are to hold it."""
        if not digest or self.lifecycle.use(model, digest):
            return None
        return NotFound(f"no adapter of model {model} has the digest {digest}")

    # -- another router's term before this one

    def snapshot(self) -> str:
        """JSON for AdapterSnapshot; empty: there is nothing to save. The same text until that changes."""
        table = self.lifecycle.table
        if not table and not table.leftovers and not any(self._declared.values()):
            return ""
        if self._saved is None or self._saved[0] != self.lifecycle.version:
            declared = {model: tuple(wishes.values()) for model, wishes in self._declared.items()}
            leftovers = sorted(table.leftovers)
            text = AdapterSnapshot(self._last_number, tuple(self), declared, leftovers).to_json()
            self._saved = (self.lifecycle.version, text)
        return self._saved[1]

    def take_over(self, snapshot: AdapterSnapshot, epoch: int) -> None:
        """Called before any other event. epoch: number of the term; numbers of registrations and versions of
        orders are larger than in any term before, even when nothing was saved."""
        self._last_number = max(snapshot.last_number, epoch)
        self.lifecycle.orders.begin(epoch)
        self._declared = {
            model: {wish.name: wish for wish in wishes} for model, wishes in snapshot.declared.items()
        }
        self.lifecycle.table.leftovers.update(snapshot.leftovers)
        for registration in snapshot.registrations:
            if registration.state is AdapterState.FAILED:
                registration.try_again()
            self.lifecycle.add(registration)

    # -- parts

    def _of_other_models(self, model: str, name: str) -> list[Registration]:
        return [one for one in self if one.wish.name == name and one.model != model and not one.leaving]

    def _named(self, model: str, name: str) -> list[Registration]:
        return [one for one in self.lifecycle.table.named(model, name) if not one.leaving]

    def _current(self, model: str, name: str) -> Registration | None:
        """Returns the registration that requests of this name use now; without one, the latest one, which
        they will use when it is ready; None: there is none."""
        found = self._named(model, name)
        ready = (one for one in found if one.state is AdapterState.READY)
        return next(ready, found[-1] if found else None)

    def _register(self, model: str, wish: AdapterWish) -> Registration:
        for one in self._named(model, wish.name):
            if one.pending:
                text = f"adapter {wish.name} was loaded again, from {wish.source}, before this load had ended"
                self._drain(one, InvalidRequest(text))
        self._last_number += 1
        registration = Registration(self._last_number, model, wish)
        self.lifecycle.add(registration)
        if wish.implicit:
            self.lifecycle.bound_implicit()
        return registration

    def _drain(self, registration: Registration, error: InvalidRequest | NotFound) -> None:
        """error: for those who wait until it is ready, if it is not."""
        if registration.pending:
            self.lifecycle.drain(registration, type(error).__name__, error.message)
        else:
            self.lifecycle.drain(registration)

    def _model(self, model: str) -> str:
        known = self._models()
        if model in known:
            return model
        if model:
            raise NotFound(f"there is no model {model}{did_you_mean(model, sorted(known))}")
        if len(known) != 1:
            raise InvalidRequest(
                f"say which model is meant: there are {', '.join(sorted(known)) or 'none yet'}"
            )
        return next(iter(known))

    def _model_of(self, model: str, name: str) -> str:
        """Returns the model of an adapter. model: as it was given. Errors: NotFound."""
        if model or len(self._models()) < 2:
            return self._model(model)
        staying_first = sorted(self, key=lambda one: one.leaving)
        owner = next((one.model for one in staying_first if one.wish.name == name), None)
        if owner is None:
            hint = did_you_mean(name, [one.wish.name for one in self])
            raise NotFound(f"no adapter has the name {name}{hint}")
        return owner

    def _models(self) -> frozenset[str]:
        return self._membership.models() | self._declared.keys()

    def _check_name(self, model: str, name: str) -> None:
        if not name:
            raise InvalidRequest("the name of an adapter must be set")
        if is_digest(name.lower()):
            raise InvalidRequest(f"{name} looks like the digest of an adapter; choose another name")
        if name in self._models():
            raise InvalidRequest(f"{name} is the name of a model, so no adapter can have it")
        for other in self._of_other_models(model, name):
            text = f"{name} is the name of an adapter of model {other.model}; choose another one"
            raise InvalidRequest(text)

    def _check_workers(self, model: str) -> None:
        """Without any worker, those that come may run adapters."""
        if model in self._membership.models() and not self.lifecycle.members(model):
            raise InvalidRequest(
                f"no worker of model {model} runs adapters: the manifest has no section `lora`"
            )

    def _unknown(self, model: str, name: str) -> NotFound:
        known = [one.wish.name for one in self if one.model == model and not one.leaving]
        return NotFound(f"no adapter of model {model} has the name {name}{did_you_mean(name, known)}")
