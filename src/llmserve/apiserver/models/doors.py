"""The models of an apiserver: which one a request means, and models that come and go while it runs."""

from collections.abc import Iterator, Sequence

from vllm.entrypoints.serve.engine.protocol import ModelCard

from llmserve.apiserver.http.scope import current_scope
from llmserve.apiserver.models.door import ModelDoor
from llmserve.config.messages import closest_first
from llmserve.core.errors import InvalidRequest, NotFound, Unavailable

_MOST_SHOWN = 10
_MOST_LETTERS = 200  # of a name that a client made up


class ModelDoors:
    """There is at least one from the first `add` on; requests come after that."""

    def __init__(self) -> None:
        self._doors: dict[str, ModelDoor] = {}

    def __iter__(self) -> Iterator[ModelDoor]:
        return iter(list(self._doors.values()))

    def get(self, name: str) -> ModelDoor | None:
        return self._doors.get(name)

    @property
    def first(self) -> ModelDoor:
        """The one that answers what is about no model in particular. It generates if any does: those have
        more routes, such as those of the original projects."""
        return self.first_that(generates=True)

    def first_that(self, *, generates: bool) -> ModelDoor:
        """Returns the first model that generates, or the first that does not; without any, the first one."""
        doors = self._doors.values()
        return next((door for door in doors if door.generates is generates), next(iter(doors)))

    # -- the choice

    def named(self, name: str | None, *, by_version: bool = False) -> ModelDoor:
        """Returns the model that the caller of the current request means by `model`: its name, or that of one
        of its adapters. by_version: or the digest or the source of one. Errors: InvalidRequest when nothing
        is named and there are several; NotFound."""
        return _chosen(self.visible(), name or "", by_version=by_version)

    def managed(self, name: str | None) -> ModelDoor:
        """Returns the model that an admin means, who manages all of them, whichever tenants may use them.
        Errors: as named."""
        return _chosen(list(self), name or "")

    def with_response(self, response_id: str) -> ModelDoor:
        """Returns the model that makes this response of the caller. Any can fetch one that was made before,
        or elsewhere."""
        return next((door for door in self if door.makes_response(response_id)), self.first)

    def visible(self) -> list[ModelDoor]:
        """Returns those that the caller may use."""
        caller = current_scope().caller
        return [door for door in self if door.admits(caller.tenant) and caller.may_use_model(door.name)]

    def serves(self, path: str) -> bool:
        """Returns whether any model has a route of this path."""
        return any(path in door.paths for door in self)

    async def cards(self) -> list[ModelCard]:
        """Returns all models and adapters that the caller may use."""
        return [card for door in self.visible() for card in await door.cards()]

    def unknown(self, name: str) -> NotFound:
        """Returns the error of a request that names a model that is not there, or not for its caller."""
        return _unknown(self.visible(), name)

    # -- models come and go

    def add(self, door: ModelDoor) -> None:
        """Lets requests name a model from now on. Errors: InvalidRequest when one of its name is there."""
        self.check_free(door.name)
        self._doors[door.name] = door

    def check_free(self, name: str) -> None:
        """Errors: InvalidRequest when a model of this name is there."""
        if name in self._doors:
            raise InvalidRequest(f"model {name} is loaded already", field="model")

    async def drop(self, name: str, drain_seconds: float) -> None:
        """From now on the model is unknown to requests. Those that run have this long to end. Errors:
        NotFound; InvalidRequest for the only one."""
        if name not in self._doors:
            raise self.unknown(name)
        if len(self._doors) == 1:
            raise InvalidRequest(f"model {name} is the only one; load another one before", field="model")
        door = self._doors.pop(name)
        await door.drain(drain_seconds, Unavailable(f"model {name} is being unloaded"))
        await door.aclose()


def _chosen(doors: Sequence[ModelDoor], name: str, *, by_version: bool = False) -> ModelDoor:
    """Returns that of these models which a name means, as ModelDoors.named says."""
    if not name:
        if len(doors) == 1:
            return doors[0]
        raise InvalidRequest(f"model has to be set: there are {_listed(_names(doors))}", field="model")
    for door in doors:
        if door.name == name:
            return door
    for door in doors:
        if name in door.adapters or (by_version and door.adapters.find(name)):
            return door
    raise _unknown(doors, name)


def _unknown(doors: Sequence[ModelDoor], name: str) -> NotFound:
    known = _listed(closest_first(name, _names(doors)))
    text = f"The model `{name[:_MOST_LETTERS]}` does not exist. There are: {known}."
    return NotFound(text, field="model")


def _names(doors: Sequence[ModelDoor]) -> list[str]:
    return [*(door.name for door in doors), *(name for door in doors for name in door.adapters)]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_SHOWN])
    return shown if len(names) <= _MOST_SHOWN else f"{shown} and {len(names) - _MOST_SHOWN} more"
