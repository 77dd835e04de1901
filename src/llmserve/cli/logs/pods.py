"""The logs of a cluster in Kubernetes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from llmserve.cli.logs.lines import LogLine, Timed, from_on, last, merged
from llmserve.core.errors import NotFound
from llmserve.k8s.api import KubeApi
from llmserve.k8s.logs import Container, containers, read

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ")
_NANOSECONDS = 10**9


class PodLogs:
    """Life: written (once, to its end) -> new, as often as wanted: also of pods that came meanwhile.
    Errors of all: ApiRefused, Unavailable."""

    def __init__(self, api: KubeApi, cluster: str, wanted: str | None) -> None:
        """wanted: a role, or the name of a pod; None: all. Errors: NotFound, with what there is."""
        self._api, self._cluster, self._wanted = api, cluster, wanted
        # Unix times in nanoseconds; what was written later is new. _begin: of containers that have not yet
        # written; None: all that they write.
        self._begin: int | None = None
        self._read_to: dict[str, int] = {}
        self._found = self._containers()
        if not self._found:
            raise NotFound(self._missing())

    @property
    def names(self) -> list[str]:
        return [one.name for one in self._found]

    def written(self, count: int | None, since: float | None) -> Iterator[LogLine]:
        """What is there, by time. count: of the last lines."""
        if since is not None:
            self._begin = int(since * _NANOSECONDS) - 1
        asked = None if count is None else max(count, 1)  # the last one says where to go on
        logs = [self._of(one, since, asked) for one in self._found]
        self._note(logs)
        return merged(last(from_on(log.lines, since), count) for log in logs)

    def new(self) -> list[LogLine]:
        """What was written since, by time. What an error kept from being told is told by the next call."""
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
    """Unix time at which a line was written, in the zone of its node. None: it does not say."""
    match = _TIME.match(text)
    if match is None:
        return None
    seconds = datetime.fromisoformat(match[1] + match[3]).timestamp()
    return int(seconds) * _NANOSECONDS + int((match[2] or "").ljust(9, "0"))
