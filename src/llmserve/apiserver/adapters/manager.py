"""Loads and unloads adapters for the clients of this apiserver, by the router that leads."""

import asyncio
import hashlib
from collections.abc import Callable

from llmserve.apiserver.adapters.names import AdapterNames
from llmserve.config.adapter_source import AdapterSource, parse_adapter_source
from llmserve.core.adapters import AdapterTier, NamedAdapter
from llmserve.core.errors import InvalidRequest, Unavailable
from llmserve.rpc.adapter_calls import AdapterClient
from llmserve.rpc.adapters import decode_named
from llmserve.rpc.gen.llmserve.v1 import router_pb2

_HEAR_SECONDS = 5.0  # the router tells its apiservers at the moment in which it answers
_NAME_DIGITS = 8


class AdapterManager:
    """limit_seconds: returns the longest time that a request may take. Errors of all: those of AdapterClient;
    Unavailable when the router does not tell this apiserver what it has answered."""

    def __init__(
        self, router: AdapterClient, names: AdapterNames, limit_seconds: Callable[[], float]
    ) -> None:
        self._router, self._names, self._limit_seconds = router, names, limit_seconds

    async def load(
        self, name: str, source: AdapterSource, *, pin: bool = False, tier: AdapterTier | None = None
    ) -> router_pb2.AdapterStatus:
        """Returns when requests to this apiserver may use it, or the name has moved on to a later load. The
        router refuses a source that is not allowed."""
        status = await self._router.load(name, str(source), self._limit_seconds(), pin=pin, tier=tier)
        loaded = decode_named(status.adapter)

        def has_heard() -> bool:
            heard = self._names.meaning(name)
            return heard is not None and (heard.digest == loaded.digest or heard.number > loaded.number)

        await self._hear(has_heard, f"adapter {name} is ready")
        return status

    async def load_for_request(self, name: str, source: AdapterSource) -> NamedAdapter:
        """Loads what a request names by its source. name: as of name_for. A source that cannot be used leaves
        no name behind."""
        status = await self._router.load(name, str(source), self._limit_seconds(), implicit=True)
        return decode_named(status.adapter)

    async def unload(self, name: str, *, wait: bool = False) -> router_pb2.AdapterStatus:
        """Returns when requests to this apiserver may not use it any more, unless it was loaded again since.
        wait: and no worker has it."""
        status = await self._router.unload(name, self._limit_seconds(), wait=wait)
        unloaded = decode_named(status.adapter)

        def has_heard() -> bool:
            heard = self._names.meaning(name)
            return heard is None or heard.digest != unloaded.digest or heard.number > unloaded.number

        await self._hear(has_heard, f"adapter {name} is unloaded")
        return status

    async def keep(
        self, name: str, *, pin: bool | None = None, tier: AdapterTier | None = None, wait: bool = False
    ) -> router_pb2.AdapterStatus:
        return await self._router.keep(name, self._limit_seconds(), pin=pin, tier=tier, wait=wait)

    async def list(self) -> list[router_pb2.AdapterStatus]:
        return await self._router.list()

    async def _hear(self, has_heard: Callable[[], bool], what: str) -> None:
        """Mostly returns at once: the router answers when all apiservers that have a session have echoed what
        it told them before. It cannot wait for one whose session has broken, or was renewed, meanwhile. If
        this is such a one, it learns the names at the beginning of its next session."""
        try:
            async with asyncio.timeout(_HEAR_SECONDS):
                while not has_heard():
                    await self._names.changed.wait()
        except TimeoutError as error:
            raise Unavailable(f"{what}, but the router has not told this apiserver") from error


def read_source(text: str, field: str) -> AdapterSource:
    """Reads a source in a field of a request. Errors: InvalidRequest about this field."""
    try:
        return parse_adapter_source(text)
    except InvalidRequest as error:
        raise InvalidRequest(f"{field}: {error.message}", field=field) from error


def name_for(source: AdapterSource, model: str) -> str:
    """Returns the name of an adapter that requests name by its source. It is always the same for a source and
    a model, and another one for another model: a name is that of one adapter of all models."""
    last, whole = source.place.rpartition("/")[2], f"{model}\0{source}"
    return f"{last}-{hashlib.sha256(whole.encode()).hexdigest()[:_NAME_DIGITS]}"
