"""What stands below a worker's adapters in tests: a store of files, and an engine that notices misuse."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from llmserve.config.adapter_source import AdapterSource
from llmserve.core.adapters import BASE_MODEL, AdapterTier
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.ids import AdapterDigest, RequestId
from llmserve.core.request import EngineRequest, SamplingLimits
from llmserve.models.adapters import AdapterFiles
from llmserve.models.files import Progress, silent

Key = tuple[AdapterDigest, AdapterTier]


class InlineThreads(Executor):
    """Runs at once, so that tests in virtual time can use what needs threads."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class FakeStore:
    """The contract of AdapterCache. The source `dir:/NAME` has the version NAME, unless `sources` says
    otherwise. errors: what a fetch of a version raises. held: by this process. folder: where files are, if
    they are to be real."""

    def __init__(self, folder: Path = Path("/nowhere")) -> None:
        self._folder = folder
        self.sources: dict[str, str] = {}
        self.errors: dict[str, Exception] = {}
        self.places: set[Key] = set()
        self.held: set[Key] = set()
        self.fetched: list[Key] = []
        self.has_memory = True
        self.closed = False

    def fetch(
        self, source: AdapterSource, digest: AdapterDigest = BASE_MODEL, progress: Progress = silent
    ) -> AdapterFiles:
        name = self.sources.get(source.place, source.place.removeprefix("/"))
        if name in self.errors:
            raise self.errors[name]
        assert digest in (BASE_MODEL, name), "the source has this version"
        return self._bring(AdapterDigest(name), AdapterTier.DISK)

    def reuse(self, source: AdapterSource, digest: AdapterDigest) -> AdapterFiles:
        if (digest, AdapterTier.DISK) not in self.places:
            raise NotFound(f"{digest} is not on disk")
        return self._bring(digest, AdapterTier.DISK)

    def _bring(self, digest: AdapterDigest, tier: AdapterTier) -> AdapterFiles:
        if (digest, tier) not in self.places:
            self.fetched.append((digest, tier))
        self.places.add((digest, tier))
        self.held.add((digest, tier))
        if self._folder.is_dir():
            (self._folder / digest).mkdir(exist_ok=True)
        return AdapterFiles(digest, self._folder / digest, 8, 100, tier)

    def bring_to_dram(self, digest: AdapterDigest) -> AdapterFiles:
        if (digest, AdapterTier.DISK) not in self.places or not self.has_memory:
            raise NotFound(f"{digest} is not on disk, or there is no room")
        return self._bring(digest, AdapterTier.DRAM)

    def find(self, digest: AdapterDigest) -> AdapterFiles | None:
        for tier in (AdapterTier.DRAM, AdapterTier.DISK):
            if (digest, tier) in self.places:
                return AdapterFiles(digest, self._folder / digest, 8, 100, tier)
        return None

    def release(self, digest: AdapterDigest, tier: AdapterTier) -> None:
        self.held.discard((digest, tier))

    def remove(self, digest: AdapterDigest) -> None:
        self.vanish(digest)
        self.held -= {(digest, tier) for tier in AdapterTier}

    def vanish(self, digest: str) -> None:
        """Another process removes the files."""
        self.places -= {(AdapterDigest(digest), tier) for tier in AdapterTier}
        if (self._folder / digest).is_dir():
            (self._folder / digest).rmdir()

    def close(self) -> None:
        self.closed = True


class SlotEngine:
    """The part of the Engine contract that adapters need. Loading takes `load_seconds`; errors: what it
    raises for a version. It asserts what the contract asks of its caller."""

    def __init__(self, slots: int, load_seconds: float = 1.0) -> None:
        self._slots, self.load_seconds = slots, load_seconds
        self.errors: dict[str, Exception] = {}
        self.loaded: set[AdapterDigest] = set()
        self._loading: set[AdapterDigest] = set()
        self.requests: dict[RequestId, AdapterDigest] = {}
        self.add_gate: asyncio.Event | None = None
        self.log: list[str] = []

    async def load_adapter(self, digest: AdapterDigest, path: Path) -> None:
        assert len(self.loaded | self._loading) < self._slots, "more versions than slots"
        assert digest not in self.loaded | self._loading, "it is there already"
        self._loading.add(digest)
        try:
            await asyncio.sleep(self.load_seconds)
            if digest in self.errors:
                raise self.errors[digest]
        finally:
            self._loading.discard(digest)
        self.loaded.add(digest)
        self.log.append(f"+{digest}")

    async def unload_adapter(self, digest: AdapterDigest, *, forget_blocks: bool = False) -> None:
        assert digest not in self.requests.values(), "a request has it"
        assert digest not in self._loading, "it is being loaded"
        self.loaded.discard(digest)
        self.log.append(f"-{digest}" + "!" * forget_blocks)

    async def add(self, request: EngineRequest) -> None:
        if self.add_gate is not None:
            await self.add_gate.wait()
        if request.request_id == "bad":
            raise InvalidRequest("the request is bad")
        if request.request_id == "unforeseen":
            raise RuntimeError("the engine has a bug")
        assert request.adapter in self.loaded or not request.adapter, "its adapter is not loaded"
        self.requests[request.request_id] = request.adapter

    async def abort(self, request_ids: Sequence[RequestId]) -> None:
        for request_id in request_ids:
            self.requests.pop(request_id, None)


def request(name: str, adapter: str = "") -> EngineRequest:
    return EngineRequest(RequestId(name), [1, 2, 3], SamplingLimits(4), adapter=AdapterDigest(adapter))
