"""Limits of a server's connections: how many an address has, how large headers are, and how slow a client is.

A connection that goes beyond one is answered with a 4xx and closed before any of its request is looked at. An
answer that the client does not take is given up.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus

from llmserve.config.schema.limits import SecurityLimits


class ConnectionCounts:
    """The open connections of each address. most: of one address; those without an address are not
    counted."""

    def __init__(self, most: int) -> None:
        self._most, self._open = most, Counter[str]()

    def take(self, address: str | None) -> bool:
        """Counts a new connection. Returns False, and counts nothing, when the address has too many."""
        if address is None:
            return True
        if self._open[address] >= self._most:
            return False
        self._open[address] += 1
        return True

    def give_back(self, address: str | None) -> None:
        """Takes back a `take` that returned True."""
        if address is None:
            return
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


class HeadReader:
    """Counts what a connection sends before a request's body. on_problem: is called once, with the status and
    the reason, when that is too much or too slow."""

    def __init__(self, limits: SecurityLimits, on_problem: Callable[[HTTPStatus, str], None]) -> None:
        self._limits, self._on_problem = limits, on_problem
        self._most_bytes = limits.header_kib << 10
        self._late: asyncio.TimerHandle | None = None
        self._count = self._parsed_bytes = self._raw_bytes = 0
        self._began_in_chunk = False

    def wait(self) -> None:
        """The next request is awaited, from now on if it is not already."""
        if self._late is None:
            seconds = self._limits.header_seconds
            self._late = asyncio.get_running_loop().call_later(seconds, self._on_late)

    def begin(self) -> None:
        """A request's first line begins, perhaps while the one before is answered."""
        self.wait()
        self._count = self._parsed_bytes = self._raw_bytes = 0
        self._began_in_chunk = True

    def add(self, size_bytes: int, headers: int = 1) -> None:
        """The path (headers 0) or one header is complete."""
        self._count += headers
        self._parsed_bytes += size_bytes

    def received(self, size_bytes: int) -> None:
        """A chunk was parsed. A header that never ends is in no `add`, so chunks without an end are counted.
        The one in which the request began may have held the body of the one before."""
        if self._late is None:
            return
        if self._began_in_chunk:
            self._began_in_chunk = False
        else:
            self._raw_bytes += size_bytes
        self._check()

    def complete(self) -> bool:
        """All headers are there. Returns False when they are too many or too large."""
        self.stop()
        return self._check()

    def stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _check(self) -> bool:
        limits, wrong = self._limits, ""
        if self._count > limits.headers:
            wrong = f"a request may have at most {limits.headers} headers (security.limits.headers)"
        elif max(self._parsed_bytes, self._raw_bytes) > self._most_bytes:
            most = f"{limits.header_kib} KiB (security.limits.header_kib)"
            wrong = f"the path and the headers of a request may have at most {most}"
        if wrong:
            self._on_problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, wrong)
        return not wrong

    def _on_late(self) -> None:
        self._late, within = None, f"{self._limits.header_seconds:g} s (security.limits.header_seconds)"
        self._on_problem(HTTPStatus.REQUEST_TIMEOUT, f"the headers did not arrive within {within}")
