"""The state of a router that is alone: a file in the run directory, which survives the end of the process."""

import asyncio
import logging
import os
from pathlib import Path

from llmserve.core.clock import Clock
from llmserve.router.leader.state import MemoryState, Saved, StateKey, Term

_log = logging.getLogger(__name__)


class FileState(MemoryState):
    """Keeps what was saved about adapters, each time as a whole. The rest of the state is in memory: nobody
    else could need it. directory: is made when it is not there."""

    def __init__(self, clock: Clock, directory: Path) -> None:
        super().__init__(clock)
        self._path = directory / "router-adapters.json"
        self._failed = False

    async def save(self, term: Term, text: str, key: StateKey = StateKey.SCHEDULER) -> bool:
        """False also when the file cannot be written; it is tried again with the next change."""
        if not await super().save(term, text, key):
            return False
        return key is not StateKey.ADAPTERS or await asyncio.to_thread(self._write, text)

    async def load(self, key: StateKey = StateKey.SCHEDULER) -> Saved | None:
        found = await super().load(key)
        if found is None and key is StateKey.ADAPTERS:
            return await asyncio.to_thread(self._read)
        return found

    def _write(self, text: str) -> bool:
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            if not self._failed:
                _log.warning("adapters are forgotten if this router ends: %s", error)
            self._failed = True
            return False
        self._failed = False
        return True

    def _read(self) -> Saved | None:
        try:
            return Saved(self._path.read_text(errors="replace"), 0.0)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("what was saved about adapters cannot be read: %s", error)
            return None
