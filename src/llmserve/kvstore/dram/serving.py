"""The arena, opened to workers elsewhere by the transports of the transfer engine.

Nothing listens before the first of them attaches. Then one thread owns the transports: most serve their
peers by themselves; those that need help get it only while a peer may be copying.

Who knows a transport's description can read and write the whole arena: it is told only in the answer to
AttachStore, and what listens does so on the address of the KV manager's own service.
"""

import logging
import threading
from base64 import b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from llmserve.core.errors import LLMServeError, TransferError
from llmserve.transfer.base import Region, Transport
from llmserve.transfer.select import make_transports

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.001
_LOOK_SECONDS = 1.0  # while nobody copies: for who connects all the same, and for the end
_OPEN_SECONDS = 45.0
_JOIN_SECONDS = 30.0


class PoolServer:
    """Life: constructor -> open -> expect, rest... -> close (idempotent, before the arena's). Any thread."""

    def __init__(self, regions: Sequence[Region], engine_order: Sequence[str], host: str) -> None:
        """regions: of the arena. host: the address of this machine that workers reach."""
        self._regions, self._order, self._host = tuple(regions), tuple(engine_order), host
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._descriptions: Future[Mapping[str, str]] = Future()
        self._awake, self._closing = threading.Event(), threading.Event()

    def open(self) -> Mapping[str, str]:
        """The descriptions of the transports, by name. Idempotent; the first time it takes seconds.
        Errors: TransferError when no transport can be used here."""
        with self._lock:
            if self._closing.is_set():
                raise TransferError("kv pool: it is closing")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kv-pool-serve", daemon=True)
                self._thread.start()
        try:
            return self._descriptions.result(_OPEN_SECONDS)
        except TimeoutError:
            raise TransferError(f"kv pool: transports not ready within {_OPEN_SECONDS:g} s") from None

    def expect(self) -> None:
        """Workers may connect or copy from now on."""
        self._awake.set()

    def rest(self) -> None:
        """Nobody elsewhere has a lease or a reservation."""
        self._awake.clear()

    def close(self) -> None:
        """When it returns no transport touches the arena any more."""
        with self._lock:
            self._closing.set()
        self._awake.set()
        if self._thread:
            self._thread.join(_JOIN_SECONDS)

    # -- on the thread

    def _run(self) -> None:
        transports: list[Transport] = []
        try:
            transports, _ = make_transports(self._order, self._host)
            self._serve(self._register(transports))
        except LLMServeError as error:
            _log.error("workers elsewhere have no part in the KV store: %s", error.message)
            self._descriptions.set_exception(TransferError(f"kv pool: {error.message}"))
        finally:
            for transport in transports:
                _close(transport)

    def _register(self, transports: Sequence[Transport]) -> list[Transport]:
        """Those that can have the arena. Errors: TransferError when there is none."""
        described: dict[str, str] = {}
        usable = []
        for transport in transports:
            try:
                transport.register(self._regions)
                described[transport.name] = b64encode(transport.describe()).decode()
                usable.append(transport)
            except TransferError as error:
                _log.warning("%s does not serve the KV pool: %s", transport.name, error.message)
        if not described:
            raise TransferError("no transport can register the pool's memory")
        _log.info("workers elsewhere reach the KV pool over %s", ", ".join(described))
        self._descriptions.set_result(described)
        return usable

    def _serve(self, transports: Sequence[Transport]) -> None:
        """Until `close`."""
        helped = [transport for transport in transports if transport.needs_progress]
        while helped and not self._closing.wait(_TICK_SECONDS):
            for transport in helped:
                _help(transport)
            self._awake.wait(_LOOK_SECONDS)
        self._closing.wait()


def _help(transport: Transport) -> None:
    try:
        transport.progress()
    except TransferError as error:
        _log.warning("%s: %s", transport.name, error.message)


def _close(transport: Transport) -> None:
    try:
        transport.close()
    except TransferError as error:
        _log.warning("%s does not close: %s", transport.name, error.message)
