"""The adapter slots of a simulated engine: loading takes time, and there is nothing in a slot."""

from pathlib import Path

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.errors import AdapterUnavailable, InvalidRequest
from llmserve.core.ids import AdapterDigest
from llmserve.engines.sim.step import StepTimer


class SimAdapters:
    """load_seconds: time that one load takes."""

    def __init__(self, slots: int, load_seconds: float, timer: StepTimer) -> None:
        self._slots = slots
        self._load_seconds = load_seconds
        self._timer = timer
        self._taken: set[AdapterDigest] = set()
        self._loaded = {BASE_MODEL}

    def check(self, digest: AdapterDigest) -> None:
        """Errors: AdapterUnavailable for one that is not loaded."""
        if digest not in self._loaded:
            raise AdapterUnavailable(f"adapter {digest} is not loaded")

    async def load(self, digest: AdapterDigest, path: Path) -> None:
        """Errors: InvalidRequest; nothing has changed."""
        if digest in self._taken:
            return
        self._take(digest, path)
        await self._timer.sleep_until(self._timer.now() + self._load_seconds)
        self._loaded.add(digest)

    def _take(self, digest: AdapterDigest, path: Path) -> None:
        if not path.is_dir():
            raise InvalidRequest(f"adapter {digest} cannot be loaded: {path} is not a directory")
        if len(self._taken) >= self._slots:
            raise InvalidRequest(f"adapter {digest} cannot be loaded: all {self._slots} slots are taken")
        self._taken.add(digest)

    def unload(self, digest: AdapterDigest) -> None:
        self._taken.discard(digest)
        self._loaded.discard(digest)
