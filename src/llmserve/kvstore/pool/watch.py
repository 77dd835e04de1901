"""Notices at once when a process of this host ends, by a descriptor that the kernel makes readable."""

import asyncio
import os
from collections.abc import Callable, Hashable


class ProcessWatch:
    """On the running loop. Life: constructor -> close (idempotent)."""

    def __init__(self) -> None:
        self._watched: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def add(self, name: Hashable, pid: int, ended: Callable[[], None]) -> None:
        """Calls `ended` once, soon after the process does; soon, too, when it is gone already. A name is
        watched once: the first process counts."""
        if name in self._watched:
            return
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            loop.call_soon(ended)
            return
        self._watched[name] = descriptor
        loop.add_reader(descriptor, self._ended, name, ended)

    def close(self) -> None:
        for name in list(self._watched):
            self._forget(name)

    def _ended(self, name: Hashable, ended: Callable[[], None]) -> None:
        self._forget(name)
        ended()

    def _forget(self, name: Hashable) -> None:
        descriptor = self._watched.pop(name)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
