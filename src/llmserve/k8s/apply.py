"""Makes the cluster what was planned, and takes it away again. Says what was done when it cannot be all."""

from collections.abc import Callable, Sequence

from llmserve.core.errors import LLMServeError
from llmserve.k8s.api import KubeApi
from llmserve.k8s.changes import Action, Change, found, title
from llmserve.k8s.render.names import Object

Say = Callable[[str], None]
_DONE = {Action.CREATE: "created", Action.UPDATE: "changed", Action.DELETE: "deleted"}


class HalfDone(LLMServeError):
    """It stopped on the way. The message has the reason, what was done and what was not."""


def apply_changes(api: KubeApi, changes: Sequence[Change], say: Say, *, force: bool) -> None:
    """One after the other; what is as it should be is left alone. Errors: HalfDone."""
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
    """All objects of a cluster, what was made last first; returns them. Volumes and the namespace stay.
    Errors: HalfDone; LLMServeError when they cannot be listed."""
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
