"""The state of a router that is alone: files in the run directory, which survive the end of the process."""

import asyncio
import logging
import os
from pathlib import Path

from llmserve.core.aio import wait_ended
from llmserve.core.clock import Clock
from llmserve.router.leader.state import MemoryState, Saved, StateKey, Term

_log = logging.getLogger(__name__)

_KEPT = (StateKey.ADAPTERS, StateKey.MODELS)


class FileState(MemoryState):
    """Keeps what was saved about adapters and models, each time as a whole and in a file of its own. The rest
    of the state is in memory: nobody else could need it. directory: is made when it is not there."""

    def __init__(self, clock: Clock, directory: Path) -> None:
        super().__init__(clock)
        self._paths = {key: directory / f"router-{key}.json" for key in _KEPT}
        self._failed: set[StateKey] = set()

    async def save(self, term: Term, text: str, key: StateKey = StateKey.SCHEDULER) -> bool:
        """False also when the file cannot be written; it is tried again with the next change."""
        if not await super().save(term, text, key):
            return False
        return key not in _KEPT or await self._written(key, text)

    async def load(self, key: StateKey = StateKey.SCHEDULER) -> Saved | None:
        found = await super().load(key)
        if found is None and key in _KEPT:
            return await asyncio.to_thread(self._read, key)
        return found

    async def _written(self, key: StateKey, text: str) -> bool:
        """A call that is cancelled ends when it has written: the next one writes the same file."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._write, key, text))
        await wait_ended([writing])
        return writing.result()

    def _write(self, key: StateKey, text: str) -> bool:
        path = self._paths[key]
        fresh = path.with_suffix(".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as error:
            if key not in self._failed:
                _log.warning("%s are forgotten if this router ends: %s", key, error)
            self._failed.add(key)
            return False
        self._failed.discard(key)
        return True

    def _read(self, key: StateKey) -> Saved | None:
        try:
            return Saved(self._paths[key].read_text(errors="replace"), 0.0)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("what was saved about %s cannot be read: %s", key, error)
            return None
