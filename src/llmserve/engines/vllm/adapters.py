"""The adapters in the slots of one vLLM engine.

vLLM loads an adapter in a step that needs it, from the request's path, and evicts another one for it; a step
that cannot ends the engine. So an adapter is loaded before a request may name it, there are never more than
slots, and a request carries the path that is hashed (core/adapters.py), from which nothing is read.
"""

import asyncio
import itertools
from pathlib import Path

from vllm.lora.request import LoRARequest
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.engine.exceptions import EngineDeadError

from llmserve.core.adapters import engine_path
from llmserve.core.errors import AdapterUnavailable, InvalidRequest
from llmserve.core.ids import AdapterDigest
from llmserve.engines.connector.forgetting import FORGET


class VllmAdapters:
    """Loads and unloads one at a time. vLLM knows an adapter by a number, which is used for one load only."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._numbers: dict[AdapterDigest, int] = {}
        self._counter = itertools.count(1)
        self._turn = asyncio.Lock()

    def named_by(self, digest: AdapterDigest) -> LoRARequest | None:
        """Returns what a request for the adapter carries; None for the base model. Errors:
        AdapterUnavailable when it is not loaded."""
        if not digest:
            return None
        if digest not in self._numbers:
            raise AdapterUnavailable(f"adapter {digest} is not loaded")
        return LoRARequest(digest, self._numbers[digest], engine_path(digest))

    async def load(self, core: AsyncMPClient, digest: AdapterDigest, path: Path) -> None:
        """Errors: InvalidRequest; EngineDeadError."""
        async with self._turn:
            if digest in self._numbers:
                return
            if len(self._numbers) >= self._slots:
                raise InvalidRequest(f"adapter {digest} cannot be loaded: all {self._slots} slots are taken")
            number = next(self._counter)
            try:
                await core.add_lora_async(LoRARequest(digest, number, str(path)))
            except EngineDeadError:
                raise
            except Exception as error:
                await core.remove_lora_async(number)  # a rank may have it, or a part of it
                raise InvalidRequest(f"adapter {digest} cannot be loaded: {error}") from error
            self._numbers[digest] = number

    async def unload(self, core: AsyncMPClient, digest: AdapterDigest, *, forget_blocks: bool) -> None:
        """Errors: EngineDeadError."""
        async with self._turn:
            number = self._numbers.pop(digest, None)
            if number is not None:
                await core.remove_lora_async(number)
            if forget_blocks:
                await core.call_utility_async(FORGET, digest)
