"""The contract between a worker and its engine. Implementations: engines/vllm, engines/sim.

Life: start (once) -> add / abort / next_outputs / next_kv_events ... -> aclose. `aclose` is
idempotent, works after a failed start, and leaves no process, port or shared memory behind.
All methods are called from one asyncio loop.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmserve.core.adapters import NO_ADAPTERS, LoraShape
from llmserve.core.ids import AdapterDigest, RequestId
from llmserve.core.request import EngineLoad, EngineOutput, EngineRequest, KvEvents, KvPeer


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Known once the engine has started. computation: what of its settings changes the numbers in KV, in
    words (engines/spec.py). block_bytes is of one block over all layers, one rank.
    handover_endpoints: "host:port" of the side channel of each rank."""

    kv_dtype: str
    layout: str
    computation: str
    block_size_tokens: int
    block_bytes: int
    total_blocks: int
    max_model_len_tokens: int
    max_concurrency: int
    transports: tuple[str, ...]
    handover_endpoints: tuple[str, ...]
    lora: LoraShape = NO_ADAPTERS


class Engine(Protocol):
    async def start(self) -> EngineInfo:
        """Returns when the engine can take requests. Errors: StartFailed; ManifestError when
        another try would end alike."""

    async def add(self, request: EngineRequest) -> None:
        """Hands over one request; its outputs come from next_outputs. Its adapter is loaded, and stays until
        the request has ended. Errors: InvalidRequest; AdapterUnavailable, also when the KV that it is to
        fetch is that of another version; EngineDead. Nothing was started."""

    async def load_adapter(self, digest: AdapterDigest, path: Path) -> None:
        """Reads an adapter from its directory into a device slot. Returns when requests may name it. The
        caller loads at most `EngineInfo.lora.slots` at a time, and keeps the files in place until this
        returns: no step reads a file. Requests that run go on meanwhile. One that is loaded stays as it is.
        Errors: InvalidRequest (it cannot be loaded, or every slot is taken; nothing has changed),
        EngineDead."""

    async def unload_adapter(self, digest: AdapterDigest, *, forget_blocks: bool = False) -> None:
        """Frees the slot of an adapter that no request of this engine has. Ignores one that is not loaded.
        forget_blocks: its blocks leave the prefix cache as well, even if it was unloaded before, since the
        version is gone for good. Errors: EngineDead."""

    async def abort(self, request_ids: Sequence[RequestId]) -> None:
        """Stops requests; unknown ids are ignored. No output of them follows the call's return
        other than what is already queued. Blocks and pending transfers are given back."""

    async def next_outputs(self) -> Sequence[EngineOutput]:
        """Waits for the outputs of the next step(s). Empty: nothing runs any more, and `load` is what it is
        now until there is more to do. Single consumer. Errors: EngineDead."""

    async def next_kv_events(self) -> KvEvents:
        """Waits for changes of the device cache. Single consumer."""

    async def load(self) -> EngineLoad:
        """Cheap; called about once a second."""

    async def ping(self) -> None:
        """Returns when the loop that runs the engine's steps has answered, at once when it is idle, else
        between two steps, and none of its processes is stopped. Never, when it hangs. Called once a second:
        an idle engine rests all the same. Errors: EngineDead."""

    def processes(self) -> Collection[int]:
        """Pids of the processes that it runs in, apart from the caller's own. May read /proc."""

    async def set_peers(self, peers: Sequence[KvPeer]) -> None:
        """All workers that tickets may come from; replaces those of the call before. They are
        connected to and probed in the background; `load` reports the result."""

    async def profile(self, seconds: float) -> Sequence[Path]:
        """Records what it computes for so long, and stops recording when the caller is cancelled as well.
        Returns a trace of each rank, which the caller removes. Steps go on, but for the time in which the
        traces are written. The caller asks for one at a time. Errors: InvalidRequest (it has no profiler),
        EngineDead."""

    async def aclose(self) -> None: ...
