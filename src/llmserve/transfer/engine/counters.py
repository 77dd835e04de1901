"""What the transfers of a process are counted by, and the matrix of its pairs. Any thread reads both."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from llmserve.core.request import PairStatus


@dataclass(slots=True)
class TransportCounters:
    """seconds: from the first byte asked for to the last one in memory."""

    pulls: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failures: int = 0


@dataclass(slots=True)
class TransferCounters:
    """Totals since the start. Only the engine's thread writes them."""

    by_transport: dict[str, TransportCounters] = field(default_factory=dict)
    last_transport: str = ""
    failed_pulls: int = 0  # pulls that ended without data, whatever the transport

    def of(self, transport: str) -> TransportCounters:
        return self.by_transport.setdefault(transport, TransportCounters())

    def count_pull(self, transport: str, size_bytes: int, seconds: float) -> None:
        counters = self.of(transport)
        counters.pulls += 1
        counters.bytes += size_bytes
        counters.seconds += seconds
        self.last_transport = transport

    @property
    def transferred_bytes(self) -> int:
        return sum(counters.bytes for counters in self.by_transport.values())

    @property
    def transfer_failures(self) -> int:
        """Failed attempts on a transport, and pulls that failed before or after one."""
        return self.failed_pulls + sum(counters.failures for counters in self.by_transport.values())


RowSource = Callable[[], Iterable[PairStatus]]  # of one pair


class PairMatrix:
    """The live pairs of the transfer engines that share it: rows of `llmserve status` and of the metrics. Any
    thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: dict[RowSource, None] = {}  # in the order of `add`

    def add(self, source: RowSource) -> None:
        with self._lock:
            self._sources[source] = None

    def remove(self, source: RowSource) -> None:
        """Idempotent."""
        with self._lock:
            self._sources.pop(source, None)

    def rows(self) -> list[PairStatus]:
        with self._lock:
            sources = list(self._sources)
        return [row for source in sources for row in source()]
