"""The logs of a cluster in Kubernetes, as the nodes of its pods keep them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from llmserve.cli.logs.lines import LogLine, Timed, from_on, last, merged
from llmserve.core.errors import NotFound
from llmserve.k8s.api import ApiRefused, KubeApi
from llmserve.k8s.render.objects import COMPONENT_LABEL, Object, pod_selector

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ")
_NANOSECONDS = 10**9


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
    """Returns the containers of all pods that exist now. Errors: ApiRefused, Unavailable."""
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
        yield from _lines_of(api, one, {"previous": "true", **_query(since, count)})
    yield from _lines_of(api, one, _query(since, count))


def _query(since: float | None, count: int | None) -> dict[str, str]:
    query = {"timestamps": "true"}
    if since is not None:
        query["sinceTime"] = datetime.fromtimestamp(int(since), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if count is not None:
        query["tailLines"] = str(count)
    return query


def _lines_of(api: KubeApi, one: Container, query: dict[str, str]) -> list[str]:
    """Returns the lines of one container; none when it does not run yet, its run was forgotten or its pod is
    gone. Lines end at line feeds alone: a line of JSON may hold other line ends (U+2028)."""
    try:
        lines = api.log(one.pod, {"container": one.container, **query}).split("\n")
        return lines if lines[-1] else lines[:-1]
    except ApiRefused as refused:
        if refused.code in (400, 404):
            return []
        raise


class PodLogs:
    """Life: written (once, to its end) -> new, as often as wanted, which includes pods that came meanwhile.
    Errors of all: ApiRefused, Unavailable."""

    def __init__(self, api: KubeApi, cluster: str, wanted: str | None) -> None:
        """wanted: a role, or the name of a pod; None: all. Errors: NotFound, with what there is."""
        self._api, self._cluster, self._wanted = api, cluster, wanted
        # Unix times in nanoseconds: lines that were written later are new. _begin is the time for containers
        # that have not written yet; None: all of their lines are new.
        self._begin: int | None = None
        self._read_to: dict[str, int] = {}
        self._found = self._containers()
        if not self._found:
            raise NotFound(self._missing())

    @property
    def names(self) -> list[str]:
        return [one.name for one in self._found]

    def written(self, count: int | None, since: float | None) -> Iterator[LogLine]:
        """Yields the lines that are there, by time. count: number of the last lines."""
        if since is not None:
            self._begin = int(since * _NANOSECONDS) - 1
        asked = None if count is None else max(count, 1)  # the last one says where to go on
        logs = [self._of(one, since, asked) for one in self._found]
        self._note(logs)
        return merged(last(from_on(log.lines, since), count) for log in logs)

    def new(self) -> list[LogLine]:
        """Returns the lines written since, by time. Lines that an error held back come with the next call."""
        self._found = self._containers()
        logs = [self._new_of(one) for one in self._found]
        self._note(logs)
        return sorted((line for log in logs for line in log.lines), key=lambda line: line.at)

    def _missing(self) -> str:
        there = ", ".join(dict.fromkeys(one.pod for one in containers(self._api, self._cluster)))
        if not there:
            return f"'{self._cluster}' has no pods in namespace '{self._api.namespace}'"
        return f"no pod or role of '{self._cluster}' is called {self._wanted}; there are: {there}"

    def _containers(self) -> list[Container]:
        every = containers(self._api, self._cluster)
        return [one for one in every if self._wanted in (None, one.role, one.pod, one.name)]

    def _note(self, logs: Sequence["_Log"]) -> None:
        self._read_to |= {log.name: log.read_to for log in logs if log.read_to is not None}

    def _new_of(self, one: Container) -> "_Log":
        after = self._read_to.get(one.name, self._begin)
        # Whole seconds: as a float, the time could be rounded up to the next one.
        return self._of(one, None if after is None else after // _NANOSECONDS, None, after)

    def _of(self, one: Container, since: float | None, count: int | None, after: int | None = None) -> "_Log":
        """Each line has its time in front, from the node."""
        log, timed = _Log(one.name, after), Timed(one.name, datetime.now())
        for text in read(self._api, one, since, count):
            at, written_at = timed.line(text).at, _nanoseconds(text)
            if after is None or written_at is None or written_at > after:
                log.lines.append(LogLine(at, one.name, text.partition(" ")[2]))
            if written_at is not None:
                log.read_to = max(written_at, log.read_to or written_at)
        return log


@dataclass(slots=True)
class _Log:
    """read_to: when the last line was written, in nanoseconds of Unix time."""

    name: str
    read_to: int | None
    lines: list[LogLine] = field(default_factory=list)


def _nanoseconds(text: str) -> int | None:
    """Returns the Unix time of a line, which its node wrote in its own zone. None: the line has no time."""
    match = _TIME.match(text)
    if match is None:
        return None
    seconds = datetime.fromisoformat(match[1] + match[3]).timestamp()
    return int(seconds) * _NANOSECONDS + int((match[2] or "").ljust(9, "0"))
