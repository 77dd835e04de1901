"""What applying a manifest would change, by the server's own answer to a dry run, and the change itself."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from llmserve.core.errors import LLMServeError
from llmserve.k8s.api import MADE, ApiRefused, KubeApi
from llmserve.k8s.render.objects import (
    MODEL_LABEL,
    Object,
    other_cluster,
    selector,
    taken_text,
    title,
    to_yaml,
)

_SECRET, _SECRET_FIELDS = "Secret", ("data", "stringData")
# Set by the server, or by controllers after it.
_OF_THE_SERVER = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")


class Action(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    KEEP = "keep"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Change:
    """wanted: the object as rendered; None deletes it. before, after: the object on the server; None when
    there is none."""

    name: str
    wanted: Object | None
    before: Object | None
    after: Object | None

    @property
    def action(self) -> Action:
        if self.after is None:
            return Action.DELETE
        if self.before is None:
            return Action.CREATE
        return Action.KEEP if _own(self.before) == _own(self.after) else Action.UPDATE


class NothingApplied(LLMServeError):
    """The server refused some objects in the dry run, so nothing was applied. refused: which, and why."""

    def __init__(self, refused: Sequence[str]) -> None:
        super().__init__("\n".join(["it cannot be applied (nothing was applied):", *refused]))
        self.refused = refused


def plan_changes(
    api: KubeApi, objects: Sequence[Object], cluster: str, *, force: bool, keeps_models: bool = False
) -> list[Change]:
    """Plans the changes in the order to make them, deletions last, by dry runs. keeps_models: the objects of
    models are left to the modelmanager. Errors: NothingApplied with everything that the server refuses, in
    its words, and with objects of other clusters."""
    changes, refused = list[Change](), list[str]()
    for one in objects:
        try:
            there = api.get(one)
            if there and (owner := other_cluster(there, cluster)):
                refused.append(taken_text(one, owner))
            elif there and one["kind"] == _SECRET:
                changes.append(Change(title(one), there, there, there))  # what pods know already stays
            else:
                changes.append(Change(title(one), one, there, api.apply(one, dry_run=True, force=force)))
        except ApiRefused as error:
            refused.append(f"{title(one)}: {error.message}")
    if refused:
        raise NothingApplied(refused)
    leftovers = _leftovers(api, objects, cluster)
    return [*changes, *(one for one in leftovers if not (keeps_models and _is_of_model(one.before)))]


def plan_new(objects: Iterable[Object]) -> list[Change]:
    """Plans the changes for a namespace that does not exist yet: everything is created, and nothing can be
    tried before."""
    return [Change(title(one), one, None, one) for one in objects]


def found(api: KubeApi, cluster: str) -> list[Object]:
    """All objects of a cluster that are not being deleted; the one that was made last comes first."""
    made = [one for api_version, kind in MADE for one in api.list(api_version, kind, selector(cluster))]
    return [one for one in made[::-1] if "deletionTimestamp" not in one["metadata"]]


def _leftovers(api: KubeApi, objects: Sequence[Object], cluster: str) -> Iterator[Change]:
    """Yields deletions for objects of an earlier manifest, such as a role or an autoscaler that is gone from
    this one."""
    wanted = {title(one) for one in objects}
    for one in found(api, cluster):
        if title(one) not in wanted:
            yield Change(title(one), None, one, None)


def _is_of_model(one: Object | None) -> bool:
    return one is not None and MODEL_LABEL in one["metadata"]["labels"]


def diff(change: Change) -> Iterator[str]:
    """The lines of a unified diff between the YAML of the object as it is and as it will be."""
    before, after = (_lines(one) for one in (change.before, change.after))
    yield from difflib.unified_diff(
        before, after, f"{change.name} (now)", f"{change.name} (then)", lineterm=""
    )


def _lines(one: Object | None) -> list[str]:
    if one is None:
        return []
    hidden = _SECRET_FIELDS if one["kind"] == _SECRET else ()
    return to_yaml({key: value for key, value in _own(one).items() if key not in hidden}).splitlines()


def _own(one: Object) -> Object:
    metadata = {key: value for key, value in one["metadata"].items() if key not in _OF_THE_SERVER}
    return {key: value for key, value in one.items() if key != "status"} | {"metadata": metadata}


Say = Callable[[str], None]
_DONE = {Action.CREATE: "created", Action.UPDATE: "changed", Action.DELETE: "deleted"}


class HalfDone(LLMServeError):
    """The work stopped on the way. The message has the reason, what was done and what was not."""


def apply_changes(api: KubeApi, changes: Sequence[Change], say: Say, *, force: bool) -> None:
    """Applies the changes one after the other; objects that are right already are left alone. Errors:
    HalfDone."""
    todo = [change for change in changes if change.action is not Action.KEEP]
    for index, change in enumerate(todo):
        try:
            _act(api, change, force)
        except LLMServeError as error:
            names = [one.name for one in todo]
            raise _half_done(change.name, error, "applied", names[:index], names[index + 1 :]) from error
        say(f"{change.name} {_DONE[change.action]}")


def _act(api: KubeApi, change: Change, force: bool) -> None:
    if change.wanted is not None:
        api.apply(change.wanted, force=force)
    elif change.before is not None:
        api.delete(change.before)


def delete_all(api: KubeApi, cluster: str, say: Say) -> list[Object]:
    """Deletes all objects of a cluster, in the reverse order of their making, and returns them. Volumes and
    the namespace stay. Errors: HalfDone; LLMServeError when they cannot be listed."""
    objects = found(api, cluster)
    for index, one in enumerate(objects):
        try:
            api.delete(one)
        except LLMServeError as error:
            names = [title(other) for other in objects]
            raise _half_done(title(one), error, "deleted", names[:index], names[index + 1 :]) from error
        say(f"{title(one)} deleted")
    return objects


def _half_done(name: str, error: LLMServeError, what: str, done: list[str], left: list[str]) -> HalfDone:
    return HalfDone(
        "\n".join(
            [
                f"{name}: {error.message}",
                f"{what} before that: {', '.join(done) or 'nothing'}",
                f"not tried: {', '.join(left) or 'nothing'}",
            ]
        )
    )
