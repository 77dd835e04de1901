"""The logs of a cluster in Kubernetes."""

from collections.abc import Iterator
from datetime import datetime

from llmserve.cli.log_lines import LogLine, Timed, from_on, merged
from llmserve.core.errors import NotFound
from llmserve.k8s.api import KubeApi
from llmserve.k8s.logs import Container, containers, read


class PodLogs:
    """Life: written (once, to its end) -> new, as often as wanted: also of pods that came meanwhile.
    Errors of all: Refused, Unavailable."""

    def __init__(self, api: KubeApi, cluster: str, wanted: str | None) -> None:
        """wanted: a role, or the name of a pod; None: all. Errors: NotFound, with what there is."""
        self._api, self._cluster, self._wanted = api, cluster, wanted
        self._read_to: dict[str, float] = {}
        self._found = self._containers()
        if not self._found:
            raise NotFound(self._missing())

    @property
    def names(self) -> list[str]:
        return [one.name for one in self._found]

    def written(self, count: int | None, since: float | None) -> Iterator[LogLine]:
        """What is there, by time. count: of the last lines."""
        return merged([from_on(self._of(one, since, count), since) for one in self._found])

    def new(self) -> list[LogLine]:
        """What was written since, by time."""
        self._found = self._containers()
        lines = [line for one in self._found for line in self._new_of(one)]
        return sorted(lines, key=lambda line: line.at)

    def _missing(self) -> str:
        there = ", ".join(dict.fromkeys(one.pod for one in containers(self._api, self._cluster)))
        if not there:
            return f"'{self._cluster}' has no pods in namespace '{self._api.namespace}'"
        return f"no pod or role of '{self._cluster}' is called {self._wanted}; there are: {there}"

    def _containers(self) -> list[Container]:
        every = containers(self._api, self._cluster)
        return [one for one in every if self._wanted in (None, one.role, one.pod, one.name)]

    def _new_of(self, one: Container) -> list[LogLine]:
        read_to = self._read_to.get(one.name)
        found = self._of(one, read_to, None)
        return [line for line in found if read_to is None or line.at > read_to]

    def _of(self, one: Container, since: float | None, count: int | None) -> list[LogLine]:
        """Each line has its time in front, from the node."""
        timed = Timed(one.name, datetime.now())
        lines = []
        for text in read(self._api, one, since, count):
            at = timed.line(text).at
            lines.append(LogLine(at, one.name, text.partition(" ")[2]))
        if lines:
            self._read_to[one.name] = max(lines[-1].at, self._read_to.get(one.name, lines[-1].at))
        return lines
