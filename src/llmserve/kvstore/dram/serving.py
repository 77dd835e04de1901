"""The arena, opened to workers on other hosts by the transports of the transfer engine.

Nothing listens before the first of them attaches. Most transports serve their peers by themselves; those that
need help get it while a peer may be copying, and now and then otherwise.

Who knows a transport's description can read and write the whole arena: it stands only in the answer to
AttachStore, and what listens does so on the address of the KV manager's own service.
"""

import logging
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec

from llmserve.core.errors import LLMServeError, TransferError
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.transfer.base import Region
from llmserve.transfer.engine.engine import TransferEngine
from llmserve.transfer.engine.probe import ProbeInfo
from llmserve.transfer.select import make_transports

_log = logging.getLogger(__name__)
_COPIES, _CONNECTS = "copies", "connects"  # what is expected of workers
_CONNECT_SECONDS = 30.0  # after an attach: for the first probes


class ServedRoute(msgspec.Struct, frozen=True):
    """How a worker reaches the arena over one transport, as text of ArenaDescription.transports. probe: the
    pattern to measure it with, which also proves that the owner still has the arena."""

    description: bytes
    probe: ProbeInfo

    def to_text(self) -> str:
        return b64encode(msgspec.msgpack.encode(self)).decode()

    @classmethod
    def from_text(cls, text: str) -> "ServedRoute":
        """Errors: TransferError for what `to_text` has not made."""
        try:
            return msgspec.msgpack.decode(b64decode(text, validate=True), type=cls)
        except (ValueError, msgspec.MsgspecError, RecursionError) as error:
            raise TransferError(f"kv pool: malformed description: {error}") from error


class PoolServer:
    """Life: constructor -> open -> expect, rest... -> close (idempotent, before the arena's). Any thread."""

    def __init__(
        self,
        regions: Sequence[Region],
        engine_order: Sequence[str],
        host: str,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        """regions: memory of the arena. host: the address of this machine that workers reach."""
        self._credentials = credentials
        self._regions, self._order, self._host = tuple(regions), tuple(engine_order), host
        self._lock = threading.Lock()
        self._engine: TransferEngine | None = None
        self._closed = False

    def open(self) -> Mapping[str, str]:
        """How workers reach the arena, by transport. Idempotent; the first time it takes seconds.
        Errors: TransferError when no transport can be used here."""
        with self._lock:
            if self._closed:
                raise TransferError("kv pool: it is closing")
            if self._engine is None:
                self._engine = self._started()
        engine = self._engine
        engine.post(lambda: engine.expect(0, _CONNECTS, _CONNECT_SECONDS))
        return {
            name: ServedRoute(description, engine.probe.info).to_text()
            for name, description in engine.descriptions.items()
        }

    def _started(self) -> TransferEngine:
        try:
            transports, _ = make_transports(self._order, self._host, credentials=self._credentials)
            engine = TransferEngine(transports, self._regions)
        except LLMServeError as error:
            _log.error("workers on other hosts have no part in the KV store: %s", error.message)
            raise TransferError(f"kv pool: {error.message}") from error
        _log.info("workers on other hosts reach the KV pool over %s", ", ".join(engine.descriptions))
        return engine

    def expect(self) -> None:
        """Workers may connect or copy from now on."""
        self._post(lambda engine: engine.expect(0, _COPIES, float("inf")))

    def rest(self) -> None:
        """No worker on another host has a lease or a reservation."""
        self._post(lambda engine: engine.dismiss(0, _COPIES))

    def close(self) -> None:
        """When it returns no transport touches the arena any more."""
        with self._lock:
            self._closed = True
        if self._engine is not None:
            self._engine.close()

    def _post(self, action: Callable[[TransferEngine], None]) -> None:
        if (engine := self._engine) is not None:
            with suppress(TransferError):  # closed
                engine.post(lambda: action(engine))
