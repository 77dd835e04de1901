"""The logs of a cluster's pods, as their nodes keep them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from llmserve.k8s.api import ApiRefused, KubeApi
from llmserve.k8s.render.objects import COMPONENT_LABEL, Object, pod_selector


@dataclass(frozen=True, slots=True)
class Container:
    """name: the pod's name if it has one container, else POD/CONTAINER. restarted: the previous container has
    a log."""

    name: str
    role: str
    pod: str
    container: str
    restarted: bool


def containers(api: KubeApi, cluster: str) -> list[Container]:
    """The containers of all pods that exist now. Errors: ApiRefused, Unavailable."""
    return sorted(of_pods(api.list("v1", "Pod", pod_selector(cluster))), key=lambda one: one.name)


def of_pods(pods: Iterable[Object]) -> Iterator[Container]:
    for pod in pods:
        spec, status, name = pod.get("spec", {}), pod.get("status", {}), pod["metadata"]["name"]
        role = pod["metadata"].get("labels", {}).get(COMPONENT_LABEL, "")
        known = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
        restarts = {one["name"]: one.get("restartCount", 0) for one in known}
        for one in (*spec.get("initContainers", ()), *spec.get("containers", ())):
            is_only = len(spec["containers"]) == 1 and one in spec["containers"]
            shown = name if is_only else f"{name}/{one['name']}"
            yield Container(shown, role, name, one["name"], bool(restarts.get(one["name"])))


def read(api: KubeApi, one: Container, since: float | None = None, count: int | None = None) -> Iterator[str]:
    """Yields lines that begin with their time (RFC 3339) and a space, first those of the previous container
    if it was restarted. since: Unix time, in whole seconds. Errors: ApiRefused, Unavailable."""
    if one.restarted:
        yield from _lines(api, one, {"previous": "true", **_query(since, count)})
    yield from _lines(api, one, _query(since, count))


def _query(since: float | None, count: int | None) -> dict[str, str]:
    query = {"timestamps": "true"}
    if since is not None:
        query["sinceTime"] = datetime.fromtimestamp(int(since), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if count is not None:
        query["tailLines"] = str(count)
    return query


def _lines(api: KubeApi, one: Container, query: dict[str, str]) -> list[str]:
    """The lines of one container; none when it does not run yet, its run was forgotten or its pod is gone.
    Lines end at line feeds alone: a line of JSON may hold other line ends (U+2028)."""
    try:
        lines = api.log(one.pod, {"container": one.container, **query}).split("\n")
        return lines if lines[-1] else lines[:-1]
    except ApiRefused as refused:
        if refused.code in (400, 404):
            return []
        raise
