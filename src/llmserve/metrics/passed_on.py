"""Metrics that a library counts in a registry of its own, passed on under its names."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector


class PassedOn(Collector):
    """Families of `source` whose names begin with `prefix`, as they are when it is scraped; without those
    in `left_out`."""

    def __init__(
        self, source: CollectorRegistry, prefix: str, left_out: frozenset[str] = frozenset()
    ) -> None:
        self._source, self._prefix, self._left_out = source, prefix, left_out

    def collect(self) -> Iterator[Metric]:
        for family in self._source.collect():
            if family.name.startswith(self._prefix) and family.name not in self._left_out:
                yield family
